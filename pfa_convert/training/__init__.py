"""The trainer: one readable loop, and what it needs around it."""

from pfa_convert.training.loop import RunResult, train
from pfa_convert.training.stopping import Stopped
from pfa_convert.training.watcher import Watcher

__all__ = ["RunResult", "Stopped", "Watcher", "train"]
