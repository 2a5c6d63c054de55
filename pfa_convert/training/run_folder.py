"""A run's folder: recipe, environment, one JSON line per epoch, checkpoints, result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pfa_convert.errors import UserError
from pfa_convert.files import write_text
from pfa_convert.recipe import Recipe, parse_recipe
from pfa_convert.recipe_text import read_mapping
from pfa_convert.training.earlier import as_of_now, refuse_other_images
from pfa_convert.training.record import EpochRecord

CHANGEABLE = ("train.epochs", "train.seeds", "data.root", "data.workers", "expect", "experiment", "variant")
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

    def start(self, recipe: Recipe, environment: Mapping[str, Any]) -> None:
        """Create the folder and describe the run in it; the recipe comes last: with it, the run exists.

        Raises:
            UserError: where it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
            for stale in (self.recipe, self.result, self.log, self.last, self.best):
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
        """Return where and how the run was begun."""
        content: dict[str, Any] = json.loads(self.environment.read_text())
        return content

    def continues(self, recipe: Recipe, seed: int, *, resume: bool, overwrite: bool) -> bool:
        """Return whether there is a run here that goes on; False where a new one begins.

        Raises:
            UserError: if there is one and neither `resume` nor `overwrite` says what to do with it, or if it
                cannot go on by this recipe and seed.
        """
        if resume and overwrite:
            raise UserError("resume or overwrite: choose one of them", where=str(self.path))
        if overwrite or not self.recipe.exists():
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
        if not self.is_finished(recipe):
            refuse_other_images(recipe.to_dict(), self.read_environment(), str(self.path))
        if kept.train.epochs == recipe.train.epochs:
            return
        change = f"train.epochs is {kept.train.epochs} there and {recipe.train.epochs} here"
        for key in ("lr_schedule", "weight_decay_schedule"):
            shape = getattr(recipe.train, key).name
            if shape not in ("multistep", "constant"):
                problem = f"{change}, and the {shape} {key} of its epochs depends on it"
                raise UserError(f"cannot be extended: {problem}", where=str(self.path))
        if recipe.train.epochs < (completed := max((r.epoch for r in self.records()), default=0)):
            raise UserError(f"cannot be made shorter: {change}, {completed} are done", where=str(self.path))

    def extend(self, recipe: Recipe) -> None:
        """Describe a run that goes on by a recipe with other epochs; the result, if there is one, goes."""
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
        """Return the log's records, without a last line that a killed run left half written."""
        return [EpochRecord.from_json(line) for line in self._lines()]

    def truncate(self, epochs: int) -> None:
        """Drop log lines of epochs that the last checkpoint does not include."""
        kept = [line for line in self._lines() if EpochRecord.from_json(line).epoch <= epochs]
        write_text(self.log, "".join(f"{line}\n" for line in kept))

    def _lines(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result; its presence marks the run as finished."""
        write_text(self.result, json.dumps(result, indent=1))


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
