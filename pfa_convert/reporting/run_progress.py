"""The progress bar of a run, for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pfa_convert.recipe import Recipe
from pfa_convert.training.record import EpochRecord
from pfa_convert.training.watcher import Watcher


class ProgressWatcher(Watcher):
    """Draws a progress bar with the last epoch's figures."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
        )

    def start(self, recipe: Recipe, seed: int, images: int) -> None:
        """Begin the bar; one step is one image."""
        self._epochs = recipe.train.epochs
        self._task = self._progress.add_task(f"{recipe.name} seed {seed}", total=images, speed="")
        self._progress.start()

    def note(self, text: str) -> None:
        """Print the line."""
        self._progress.console.print(text, markup=False)

    def step(self, images: int) -> None:
        """Move the bar."""
        self._progress.advance(self._task, images)

    def epoch(self, record: EpochRecord) -> None:
        """Show the epoch's figures, in a line of its own."""
        speed = f"{record.images_per_second:,.0f} images/s"
        aligned = ""
        if record.angle_deg is not None:
            aligned = f"angle {record.angle_deg:.1f} deg  ratio {record.norm_ratio:.3f}  "
        self._progress.update(self._task, speed=speed)
        self._progress.console.print(
            f"epoch {record.epoch:>3}/{self._epochs}  loss {record.train_loss:.4f}  "
            f"top-1 {record.top1:.2f} %  {aligned}{speed}"
        )

    def stop(self) -> None:
        """End the bar, if it has begun."""
        if self._progress.live.is_started:
            self._progress.stop()
