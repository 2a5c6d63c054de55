"""A run's folder: recipe, environment, one JSON line per epoch, checkpoints, result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from pfa_convert.errors import UserError
from pfa_convert.files import write_text
from pfa_convert.recipe import Recipe, parse_recipe
from pfa_convert.recipe_text import read_mapping
from pfa_convert.training.earlier import as_of_now, format_of, refuse_other_images
from pfa_convert.training.environment import continued, parts
from pfa_convert.training.record import EpochRecord, RunResult

ROUNDING = ("train.cuda_graph", "train.compile", "train.channels_last")
"""What of a recipe changes how its steps are computed and not what: the rounding of the last bits, and which
numbers are drawn where the model or the rule draws some in each step (dropout, `brsf`)."""
CHANGEABLE = (
    *("train.epochs", "train.seeds", "data.root", "data.workers"),
    *("expect", "experiment", "variant", *ROUNDING),
)
"""What of a recipe may be another when a run goes on: it does not change what was done so far."""


class RunFolder:
    """The files of one run; everything needed to read it, resume it or run it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "log.jsonl"
        self.last = path / "last.safetensors"
        self.best = path / "best.safetensors"
        self.result = path / "result.json"
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing this run; the system lets go of it when the process ends.

        Raises:
            UserError: where another process writes it, or this one cannot.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise UserError(
                "another process is at this run: wait for its end, or choose another --output",
                where=str(self.path),
            ) from None
        except OSError as error:
            raise UserError(f"cannot write the run: {error.strerror}", where=str(self.path)) from None
        try:
            yield
        finally:
            lock.release()

    def start(self, recipe: Recipe, environment: Mapping[str, Any]) -> None:
        """Describe the run in its folder; the recipe goes last and comes last: with it, the run exists.

        Raises:
            UserError: where it cannot be written.
        """
        try:
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
            for stale in (self.result, self.last, self.best, self.log, self.recipe):
                stale.unlink(missing_ok=True)
            write_text(self.environment, json.dumps(environment, indent=1))
            write_text(self.recipe, yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        except OSError as error:
            raise UserError(f"cannot write the run: {error.strerror}", where=str(self.path)) from None

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.read_environment()["seed"])

    def read_environment(self) -> dict[str, Any]:
        """Return where and how the run was begun; raises UserError for a file that does not tell."""
        with damage_named(self.environment):
            content: dict[str, Any] = json.loads(self.environment.read_text())
            int(content["seed"])
            format_of(content)
            parts(content)
        return content

    def read_result(self) -> RunResult:
        """Return what the run ended with; raises UserError for a file that does not tell."""
        with damage_named(self.result):
            return RunResult.from_json(self.result.read_text())

    def continues(self, recipe: Recipe, seed: int, *, resume: bool, overwrite: bool) -> bool:
        """Return whether there is a run here that goes on; False where a new one begins.

        Raises:
            UserError: if there is one and neither `resume` nor `overwrite` says what to do with it, or if it
                cannot go on by this recipe and seed.
        """
        if resume and overwrite:
            raise UserError("resume or overwrite: choose one of them", where=str(self.path))
        if overwrite:
            return False
        if not self.recipe.exists():
            if left := [file.name for file in (self.result, self.last, self.best, self.log) if file.exists()]:
                problem = f"holds {', '.join(left)} of a run without its {self.recipe.name}"
                raise UserError(
                    f"{problem}: --overwrite replaces it; or choose another --output", where=str(self.path)
                )
            return False
        if not resume:
            done = "a finished run" if self.result.exists() else "a run that was begun"
            raise UserError(
                f"holds {done}: --resume continues or extends it, --overwrite replaces it; or choose another "
                "--output",
                where=str(self.path),
            )
        self.check_resumable(recipe, seed)
        return True

    def is_finished(self, recipe: Recipe) -> bool:
        """Return whether the run has come to the end of this recipe."""
        return self.result.exists() and self.read_recipe().train.epochs == recipe.train.epochs

    def check_resumable(self, recipe: Recipe, seed: int) -> None:
        """Raise UserError unless the run here can go on by this recipe and seed; `CHANGEABLE` may differ."""
        kept = self.read_recipe()
        there, here = ({**flat(r.to_dict()), "seed": s} for r, s in ((kept, self.seed), (recipe, seed)))
        if differences := differing(there, here):
            raise UserError(
                f"holds a run of another recipe or seed: {'; '.join(differences)}; choose another --output",
                where=str(self.path),
            )
        if self.is_finished(recipe):
            return
        refuse_other_images(recipe.to_dict(), self.read_environment(), str(self.path))
        completed = max((record.epoch for record in self.records()), default=0)
        if completed and not self.last.exists():
            raise UserError(
                f"cannot go on: {completed} epochs are done, but {self.last.name} is not there; --overwrite "
                "begins anew",
                where=str(self.path),
            )
        if kept.train.epochs == recipe.train.epochs:
            return
        change = f"train.epochs is {kept.train.epochs} there and {recipe.train.epochs} here"
        for key in ("lr_schedule", "weight_decay_schedule"):
            shape = getattr(recipe.train, key).name
            if shape not in ("multistep", "constant"):
                problem = f"{change}, and the {shape} {key} of its epochs depends on it"
                raise UserError(f"cannot be extended: {problem}", where=str(self.path))
        if recipe.train.epochs < completed:
            raise UserError(f"cannot be made shorter: {change}, {completed} are done", where=str(self.path))

    def go_on(self, recipe: Recipe, environment: Mapping[str, Any], epoch: int) -> None:
        """Describe a run that goes on after this epoch; if by another recipe, a result that is there goes."""
        told = continued(self.read_environment(), environment, epoch)
        write_text(self.environment, json.dumps(told, indent=1))
        if self.read_recipe() != recipe:
            self.result.unlink(missing_ok=True)
            write_text(self.recipe, yaml.safe_dump(recipe.to_dict(), sort_keys=False))

    def read_recipe(self) -> Recipe:
        """Return the recipe of the run, as the present version says what it does."""
        content = as_of_now(read_mapping(self.recipe), self.read_environment())
        return parse_recipe(content, str(self.recipe))

    def append(self, record: EpochRecord) -> None:
        """Add one line to the log."""
        with self.log.open("a") as file:
            file.write(record.to_json() + "\n")

    def records(self) -> list[EpochRecord]:
        """Return the log's records, without a last line that a killed run left half written.

        Raises:
            UserError: for a log that is damaged elsewhere.
        """
        with damage_named(self.log):
            return [EpochRecord.from_json(line) for line in self._lines()]

    def truncate(self, epochs: int) -> None:
        """Drop log lines of epochs that the last checkpoint does not include."""
        with damage_named(self.log):
            kept = [line for line in self._lines() if EpochRecord.from_json(line).epoch <= epochs]
        write_text(self.log, "".join(f"{line}\n" for line in kept))

    def _lines(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []

    def finish(self, result: RunResult) -> None:
        """Write the result; its presence marks the run as finished."""
        write_text(self.result, result.to_json())


@contextmanager
def damage_named(file: Path) -> Iterator[None]:
    """Turn what reading a damaged or missing file of a run raises into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file)) from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError("is damaged, or no file of a run", where=str(file)) from None


def flat(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with keys such as `train.optimizer.lr`."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        inside = isinstance(value, Mapping) and bool(value)
        found |= flat(value, f"{above}{key}.") if inside else {f"{above}{key}": value}
    return found


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return `KEY is A there and B here` for each key with two values that may not change on resuming."""
    return [
        f"{key} is {there.get(key, 'not given')} there and {here.get(key, 'not given')} here"
        for key in dict.fromkeys([*there, *here])
        if _plain(there.get(key)) != _plain(here.get(key)) and not key.startswith(CHANGEABLE)
    ]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
