"""Data sets; a new one is a new file here that registers itself."""

from pfa_convert.data.base import DATASETS, Data
from pfa_convert.data.options import load_data

__all__ = ["DATASETS", "Data", "load_data"]
