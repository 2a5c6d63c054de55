"""What runs have shown: one run, the runs of one recipe, and what the paper has of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from statistics import fmean, stdev
from typing import Any

from pfa_convert.recipe import Recipe
from pfa_convert.training.record import EpochRecord


@dataclass(frozen=True)
class Run:
    """One run: its recipe, seed and log."""

    recipe: Recipe
    seed: int
    log: tuple[EpochRecord, ...]
    """Epoch by epoch, from epoch 0 on where the log has it; those of earlier versions begin with 1."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Where and how the run was made, as its folder has it."""

    @property
    def records(self) -> tuple[EpochRecord, ...]:
        """The records of the epochs that the run was trained for."""
        return tuple(record for record in self.log if record.epoch > 0)

    @property
    def finished(self) -> bool:
        """Whether every epoch of the recipe is there."""
        return len(self.records) == self.recipe.train.epochs

    @property
    def accuracies(self) -> list[float]:
        """Top-1 in percent after each epoch, on the images that the run is evaluated on."""
        return [record.top1 for record in self.records]

    def by_site(self, key: str) -> dict[str, list[float]]:
        """Return `angle_deg` or `norm_ratio` of each site after each epoch, from `first_aligned` on."""
        sites = self.log[-1].alignment if self.log else {}
        return {site: [record.alignment[site][key] for record in self.log] for site in sites}

    @property
    def first_aligned(self) -> int:
        """The epoch of the first value of `by_site`: 0, or 1 for a run whose log begins there."""
        return self.log[0].epoch


@dataclass(frozen=True)
class Variant:
    """The runs of one recipe, one for each seed.

    Args:
        runs: by seed.
        experiment: the table that they belong to, as their recipe records it.
        variant: the recipe's name there, such as `pfa` or `pfa-0.3`.
        differences: what sets it apart from other recipes of that name, such as `epochs=5`.
        repeated: further runs of the same recipe and seed, which do not count.
    """

    runs: tuple[Run, ...]
    experiment: str
    variant: str
    differences: str = ""
    repeated: int = 0

    @property
    def recipe(self) -> Recipe:
        """The recipe of all these runs."""
        return self.runs[0].recipe

    @property
    def label(self) -> str:
        """The variant, with what sets it apart from others of its name."""
        return f"{self.variant} ({self.differences})" if self.differences else self.variant

    @property
    def title(self) -> str:
        """The recipe's name, with what sets it apart."""
        return f"{self.recipe.name} ({self.differences})" if self.differences else self.recipe.name

    @property
    def published(self) -> Mapping[str, Any]:
        """What the paper's figures show of this variant, whatever its length here; empty without."""
        found: Mapping[str, Any] = paper().get(self.experiment, {}).get(self.variant, {})
        return found

    @property
    def full_length(self) -> int | None:
        """The epochs of the paper's runs, where it has this variant."""
        return self.published["final_epoch"] + 1 if self.published else None

    @property
    def paper(self) -> Mapping[str, Any]:
        """The same for runs of the paper's length; shorter ones are not compared."""
        return self.published if self.full_length == self.recipe.train.epochs else {}

    @property
    def finished(self) -> list[Run]:
        """The runs that have come to their end."""
        return [run for run in self.runs if run.finished]

    def epochs(self, values: Iterable[list[float]]) -> list[tuple[float, float]]:
        """Return mean and standard deviation over the runs, for the epochs that all have."""
        return [mean_and_std(epoch) for epoch in zip(*values, strict=False)]

    def at_end(self, key: str) -> dict[str, tuple[float, float]]:
        """Return mean and standard deviation of `angle_deg` or `norm_ratio` by site at the end."""
        by_site = [run.by_site(key) for run in self.finished]
        return {
            site: mean_and_std([run[site][-1] for run in by_site]) for site in (by_site[0] if by_site else {})
        }


@cache
def paper() -> dict[str, Any]:
    """Return the paper's results: experiment, rule, and then means, curves, angles and norm ratios."""
    text = files("pfa_convert.reporting").joinpath("paper.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def mean_and_std(values: Iterable[float]) -> tuple[float, float]:
    """Return mean and standard deviation of at least one value; the latter is 0 for one, both may be nan."""
    listed = list(values)
    mean = fmean(listed)
    return mean, 0.0 if len(listed) == 1 else mean if math.isnan(mean) else stdev(listed)
