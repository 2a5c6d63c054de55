"""What a run tells of its progress."""

from __future__ import annotations

from pfa_convert.recipe import Recipe
from pfa_convert.training.record import EpochRecord


class Watcher:
    """What is told of a run's progress; the command line draws a bar, a script may do nothing."""

    def start(self, recipe: Recipe, seed: int, images: int) -> None:
        """Be told that a run with so many images to train on begins."""

    def note(self, text: str) -> None:
        """Be told, in one line, that something is done otherwise than the recipe asks."""

    def step(self, images: int) -> None:
        """Be told, after each batch, how many images were in it."""

    def epoch(self, record: EpochRecord) -> None:
        """Be told an epoch's record."""
