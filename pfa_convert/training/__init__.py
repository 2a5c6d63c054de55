"""The trainer: one readable loop, and what it needs around it."""

from pfa_convert.training.loop import train
from pfa_convert.training.record import EpochRecord, RunResult
from pfa_convert.training.stopping import Stopped
from pfa_convert.training.watcher import Watcher

__all__ = ["EpochRecord", "RunResult", "Stopped", "Watcher", "train"]
