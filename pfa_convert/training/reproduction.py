"""A whole table: every variant of a recipe file with every seed, each run a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pfa_convert.errors import UserError
from pfa_convert.recipe import Recipe, load_recipe
from pfa_convert.recipe_files import TABLES, RecipeFile, find_recipe
from pfa_convert.training.run_folder import RunFolder


@dataclass(frozen=True)
class PlannedRun:
    """One recipe with one seed, and the folder for it."""

    recipe: str
    seed: int
    folder: Path
    loaded: Recipe = field(compare=False, repr=False)

    @property
    def label(self) -> str:
        """What to call the run in a list."""
        return f"{self.folder.parent.name}, seed {self.seed}"

    @property
    def trained(self) -> bool:
        """Whether the run has completed an epoch."""
        return any(record.epoch for record in RunFolder(self.folder).records())

    @property
    def transcript(self) -> Path:
        """The file with all that the run has printed."""
        return self.folder / "output.txt"


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended; `failure` is what it said last if it ended badly."""

    run: PlannedRun
    failure: str | None = None


def plan(
    table: str,
    output: Path,
    only: Mapping[str, Sequence[str]],
    seeds: Sequence[int] | None = None,
    settings: Sequence[str] = (),
    note: Callable[[str], object] = warnings.warn,
) -> list[PlannedRun]:
    """Return the runs of a table, all variants with the first seed before any with the second.

    Args:
        table: one of `TABLES`, or any recipe file by path or packaged name.
        output: the folder for the runs' folders, `output/RECIPE/seed-N`.
        only: for an axis of the variants, those that are wanted; all by default.
        seeds: the recipe's own by default.
        settings: changes of the recipe, such as `train.epochs=5`.
        note: told what they leave out of a recipe, as by `load_recipe`.

    Raises:
        UserError: for an unknown table, axis or variant, a recipe that is not valid with the settings, or a
            folder that holds a run of another recipe.
    """
    source = TABLES.get(table, table)
    file, chosen = find_recipe(source)
    runs = []
    for choice in [chosen] if chosen else _wanted(file, only):
        recipe_source = source if chosen or not choice else f"{file.path}:{'-'.join(choice.values())}"
        recipe = load_recipe(recipe_source, settings, note)
        for seed in dict.fromkeys(recipe.train.seeds if seeds is None else seeds):
            folder = RunFolder(output / recipe.name / f"seed-{seed}")
            if folder.recipe.exists():
                folder.check_resumable(recipe, seed)
            runs.append(PlannedRun(recipe_source, seed, folder.path, recipe))
    if len({run.folder for run in runs}) < len(runs):
        raise UserError("with these settings several variants are the same one", where="--set")
    return sorted(runs, key=lambda run: run.seed)


def _wanted(file: RecipeFile, only: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, str]]:
    axes = file.axes()
    for axis, names in only.items():
        if axis not in axes:
            raise UserError(f"{file.path.stem} has no variants by {axis!r}", given=axis, choices=axes)
        for name in names:
            if name not in axes[axis]:
                raise UserError(
                    f"{file.path.stem} has no variant {name!r} by {axis}", given=name, choices=axes[axis]
                )
    for choice in file.choices():
        if all(choice[axis] in names for axis, names in only.items()):
            yield choice


def reproduce(
    runs: Sequence[PlannedRun],
    jobs: int,
    data_root: Path | None = None,
    settings: Sequence[str] = (),
    device: str | None = None,
) -> Generator[FinishedRun, None, None]:
    """Run what is not finished, `jobs` processes at a time, and yield each run as it ends.

    A run that was begun is continued. One that fails stops no other. If the iterator is closed early, the
    processes are asked to save and end.
    """
    waiting = deque(runs)
    running: dict[subprocess.Popen[bytes], PlannedRun] = {}
    devices: list[str | None] = [device]
    if device is None and torch.cuda.is_available():
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    started = 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.popleft()
                if RunFolder(run.folder).is_finished(run.loaded):
                    yield FinishedRun(run)
                    continue
                running[_start(run, jobs, data_root, settings, devices[started % len(devices)])] = run
                started += 1
            for process in [process for process in running if process.poll() is not None]:
                run = running.pop(process)
                yield FinishedRun(run, failure_text(run, process.returncode) if process.returncode else None)
            time.sleep(0.1)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def arguments(
    run: PlannedRun, data_root: Path | None, settings: Sequence[str], device: str | None
) -> list[str]:
    """Return the arguments of the command line that does a run, or goes on with it."""
    words = ["train", run.recipe, "--resume", "--seed", str(run.seed), "--output", str(run.folder)]
    words += ["--data", str(data_root)] if data_root else []
    words += ["--device", device] if device else []
    for setting in settings:
        words += ["--set", setting]
    return words


def _start(
    run: PlannedRun, jobs: int, data_root: Path | None, settings: Sequence[str], device: str | None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pfa_convert", *arguments(run, data_root, settings, device)]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        with run.transcript.open("ab") as said:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": threads, **os.environ},
            )
    except OSError as error:
        raise UserError(f"cannot write the run: {error.strerror}", where=str(run.folder)) from None


def failure_text(run: PlannedRun, code: int) -> str:
    """Return the last line that a run printed, or its exit code."""
    lines = run.transcript.read_text(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{ended}: {said}" if said else ended
