"""The trainer: one readable loop, and what it needs around it."""

from pfa_convert.training.loop import RunResult, train

__all__ = ["RunResult", "train"]
