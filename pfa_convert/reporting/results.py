"""What runs have shown, beside what the paper has: read from their folders, averaged over their seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pfa_convert.errors import UserError
from pfa_convert.recipe import Recipe, load_recipe
from pfa_convert.recipe_text import read_mapping
from pfa_convert.reporting.grouping import differences, place_of, what_counts
from pfa_convert.training.run_folder import RunFolder

PAPER_SEEDS = 5
"""The number of runs behind each of the paper's means that has a standard deviation."""


@dataclass(frozen=True)
class Run:
    """One run: its recipe, seed, and a record for each epoch."""

    recipe: Recipe
    seed: int
    records: tuple[Mapping[str, Any], ...]
    untrained: Mapping[str, Any] | None = None
    """The record of epoch 0, where the run has one: alignment alone."""

    @property
    def finished(self) -> bool:
        """Whether every epoch of the recipe is there."""
        return len(self.records) == self.recipe.train.epochs

    @property
    def accuracies(self) -> list[float]:
        """Top-1 in percent after each epoch, on the images that the run is judged by."""
        key = "validation_top1" if self.recipe.data.validation else "test_top1"
        return [record[key] for record in self.records]

    def by_site(self, key: str) -> dict[str, list[float]]:
        """Return `angle_deg` or `norm_ratio` of each site after each epoch, from `first_aligned` on."""
        records = (self.untrained, *self.records) if self.untrained else self.records
        sites = records[-1]["alignment"] if records else {}
        return {site: [record["alignment"][site][key] for record in records] for site in sites}

    @property
    def first_aligned(self) -> int:
        """The epoch of the first value of `by_site`: 0, or 1 for a run whose log begins there."""
        return 0 if self.untrained else 1


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
        return [_mean_and_std(epoch) for epoch in zip(*values, strict=False)]

    def at_end(self, key: str) -> dict[str, tuple[float, float]]:
        """Return mean and standard deviation of `angle_deg` or `norm_ratio` by site at the end."""
        by_site = [run.by_site(key) for run in self.finished]
        return {
            site: _mean_and_std([run[site][-1] for run in by_site])
            for site in (by_site[0] if by_site else {})
        }


@dataclass(frozen=True)
class Row:
    """One line of the table: accuracies in percent, `best` the highest of a run's epochs.

    `gap` is the mean difference to the experiment's `bp` over the runs of the same seed, `gap_error` the
    standard error of that mean; where no seed is the same, `gap` is the difference of the means.

    `epochs` is the length of the runs, `of_epochs` that of the paper's, if it has this recipe; only runs of
    the same length are compared. `repeated` further runs had a seed that counts already.

    `within_noise` says whether the difference is below twice its standard error, where that is known.
    """

    recipe: str
    epochs: int
    of_epochs: int | None
    repeated: int
    seeds: int
    mean: float
    std: float
    best_mean: float
    best_std: float
    gap: float | None
    gap_error: float | None
    paper_mean: float | None
    paper_std: float | None
    paper_gap: float | None
    difference: float | None
    within_noise: bool | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@cache
def paper() -> dict[str, Any]:
    """Return the paper's results: experiment, rule, and then means, curves, angles and norm ratios."""
    text = files("pfa_convert.reporting").joinpath("paper.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def read_runs(paths: Iterable[Path]) -> dict[str, dict[str, Variant]]:
    """Return all runs below the given folders, by experiment and then by label.

    Raises:
        UserError: if a folder holds no run.
    """
    found: list[tuple[RunFolder, Run]] = []
    for path in paths:
        folders = sorted(
            file.parent for file in path.rglob("recipe.yaml") if (file.parent / "log.jsonl").exists()
        )
        if not folders:
            raise UserError("holds no run that has completed an epoch", where=str(path))
        for folder in map(RunFolder, folders):
            untrained, *records = _from_epoch_0(folder.records())
            run = Run(load_recipe(folder.recipe), folder.seed, tuple(records), untrained)
            if run.records:
                found.append((folder, run))
    experiments: dict[str, dict[str, Variant]] = {}
    for variant in _variants(found):
        experiments.setdefault(variant.experiment, {})[variant.label] = variant
    experiments = _with_backpropagation(experiments)
    return {name: _in_order(variants) for name, variants in sorted(experiments.items())}


def _variants(found: Iterable[tuple[RunFolder, Run]]) -> Iterator[Variant]:
    """Yield the runs of each recipe; a seed that was run twice counts once, by its longest run."""
    places: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for folder, run in found:
        place, content = place_of(read_mapping(folder.recipe)), what_counts(run.recipe.to_dict())
        places.setdefault(place, {}).setdefault(json.dumps(content, sort_keys=True), []).append(run)
    for (experiment, variant), groups in places.items():
        apart = differences([json.loads(content) for content in groups])
        for runs, difference in zip(groups.values(), apart, strict=True):
            longest = {run.seed: run for run in sorted(runs, key=lambda run: len(run.records))}
            chosen = tuple(longest[seed] for seed in sorted(longest))
            yield Variant(chosen, experiment, variant, difference, len(runs) - len(chosen))


def _with_backpropagation(experiments: dict[str, dict[str, Variant]]) -> dict[str, dict[str, Variant]]:
    """Give each experiment without `bp` that of another one with the same model, data and epochs.

    One that has nothing but the runs it lent is not an experiment of its own.
    """

    offered = [(name, v["bp"]) for name, v in experiments.items() if "bp" in v]
    lent, found = set(), {}
    for name, variants in experiments.items():
        found[name] = dict(variants)
        if "bp" in variants:
            continue
        for lender, bp in offered:
            if all(_task(bp) == _task(variant) for variant in variants.values()):
                found[name]["bp"] = bp
                lent.add(lender)
                break
    return {name: v for name, v in found.items() if name not in lent or set(v) != {"bp"}}


def _task(variant: Variant) -> tuple[Any, ...]:
    recipe = variant.recipe
    return recipe.model, recipe.init, recipe.data, recipe.train.epochs


def _from_epoch_0(records: list[dict[str, Any]]) -> list[Any]:
    """Return a record for each epoch from 0 on, None for that one where the log begins later."""
    return records if records and records[0]["epoch"] == 0 else [None, *records]


def rows(variants: Mapping[str, Variant]) -> list[Row]:
    """Return the table of one experiment: the variants with a finished run."""
    done = {label: variant for label, variant in variants.items() if variant.finished}
    table = []
    for variant in done.values():
        bp = _backpropagation(variant, done.values())
        table.append(_row(variant, _gap(variant, bp), None if bp is None else bp.paper.get("final_mean")))
    return table


def _backpropagation(variant: Variant, among: Iterable[Variant]) -> Variant | None:
    """Return the `bp` to compare with: the only one, or of several that of the same task and length."""
    found = [other for other in among if other.variant == "bp"]
    same = [other for other in found if _task(other) == _task(variant)]
    return found[0] if len(found) == 1 else next(iter(same), None)


def _gap(variant: Variant, bp: Variant | None) -> tuple[float | None, float | None]:
    """Return the mean difference to `bp` and its standard error, seed by seed."""
    if bp is None:
        return None, None
    of_bp = {run.seed: run.accuracies[-1] for run in bp.finished}
    gaps = [run.accuracies[-1] - of_bp[run.seed] for run in variant.finished if run.seed in of_bp]
    if not gaps:
        return fmean(run.accuracies[-1] for run in variant.finished) - fmean(of_bp.values()), None
    known = len(gaps) > 1 and variant is not bp
    return fmean(gaps), stdev(gaps) / len(gaps) ** 0.5 if known else None


def _row(variant: Variant, gap: tuple[float | None, float | None], paper_bp: float | None) -> Row:
    accuracies = [run.accuracies[-1] for run in variant.finished]
    mean, std = _mean_and_std(accuracies)
    best_mean, best_std = _mean_and_std(max(run.accuracies) for run in variant.finished)
    paper_mean, paper_std = variant.paper.get("final_mean"), variant.paper.get("final_std")
    difference = None if paper_mean is None else mean - paper_mean
    within = None
    if difference is not None and paper_std is not None and len(accuracies) > 1:
        error = (paper_std**2 / PAPER_SEEDS + std**2 / len(accuracies)) ** 0.5
        within = abs(difference) <= 2 * error
    return Row(
        recipe=variant.title,
        epochs=variant.recipe.train.epochs,
        of_epochs=variant.full_length,
        repeated=variant.repeated,
        seeds=len(accuracies),
        mean=mean,
        std=std,
        best_mean=best_mean,
        best_std=best_std,
        gap=gap[0],
        gap_error=gap[1],
        paper_mean=paper_mean,
        paper_std=paper_std,
        paper_gap=None if paper_mean is None or paper_bp is None else paper_mean - paper_bp,
        difference=difference,
        within_noise=within,
        seconds=fmean(sum(record["seconds"] for record in run.records) for run in variant.finished),
    )


def _mean_and_std(values: Iterable[float]) -> tuple[float, float]:
    """Return mean and standard deviation; the latter is 0 for one value."""
    listed = list(values)
    return fmean(listed), stdev(listed) if len(listed) > 1 else 0.0


def _in_order(variants: dict[str, Variant]) -> dict[str, Variant]:
    """Sort by rule, the one that reached most first, and within a rule by the numbers in the label."""
    best: dict[str, float] = {}
    for variant in variants.values():
        reached = fmean(run.accuracies[-1] for run in variant.runs)
        best[variant.recipe.convert.rule] = max(reached, best.get(variant.recipe.convert.rule, reached))

    def place(label: str) -> tuple[float, str, list[float], str]:
        rule = variants[label].recipe.convert.rule
        return -best[rule], rule, [float(number) for number in re.findall(r"\d+\.?\d*", label)], label

    return {label: variants[label] for label in sorted(variants, key=place)}
