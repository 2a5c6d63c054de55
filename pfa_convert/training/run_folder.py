"""A run's folder: recipe, environment, one JSON line per epoch, checkpoints, result."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from pfa_convert.errors import UserError
from pfa_convert.recipe import Recipe, parse_recipe
from pfa_convert.recipe_text import read_mapping


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

    def start(self, recipe: Recipe, seed: int) -> None:
        """Create the folder and describe the run in it; the recipe comes last: with it, the run exists.

        Raises:
            UserError: where it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for stale in (self.recipe, self.result, self.log, self.last, self.best):
                stale.unlink(missing_ok=True)
            self._write(self.environment, json.dumps(environment(seed), indent=1))
            self._write(self.recipe, yaml.safe_dump(recipe.to_dict(), sort_keys=False))
        except OSError as error:
            raise UserError(f"cannot write the run: {error.strerror}", where=str(self.path)) from None

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(json.loads(self.environment.read_text())["seed"])

    def check_same(self, recipe: Recipe, seed: int) -> None:
        """Raise UserError unless the folder holds a run of this recipe, defaults included, and seed."""
        kept = parse_recipe(read_mapping(self.recipe), str(self.recipe)).to_dict()
        if kept != json.loads(json.dumps(recipe.to_dict())) or self.seed != seed:
            raise UserError(
                "holds a run of another recipe or seed; choose another --output", where=str(self.path)
            )

    def append(self, record: dict[str, Any]) -> None:
        """Add one line to the log."""
        with self.log.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Return the log's records, without a last line that a killed run left half written."""
        lines = self.log.read_text().split("\n")[:-1] if self.log.exists() else []
        return [json.loads(line) for line in lines]

    def truncate(self, epochs: int) -> None:
        """Drop log lines of epochs that the last checkpoint does not include."""
        kept = [record for record in self.records() if record["epoch"] <= epochs]
        self._write(self.log, "".join(json.dumps(record) + "\n" for record in kept))

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result; its presence marks the run as finished."""
        self._write(self.result, json.dumps(result, indent=1))

    def _write(self, path: Path, text: str) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        partial.write_text(text)
        partial.replace(path)


def environment(seed: int) -> dict[str, Any]:
    """Return versions, device and seed."""
    return {
        "seed": seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "timm": version("timm"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
    }
