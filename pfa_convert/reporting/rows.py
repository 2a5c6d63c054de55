"""One line of the table of results for each variant, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from pfa_convert.reporting.reading import task_of
from pfa_convert.reporting.results import Variant, mean_and_std

PAPER_SEEDS = 5
"""The number of runs behind each of the paper's means that has a standard deviation."""


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


def rows(variants: Mapping[str, Variant]) -> list[Row]:
    """Return the table of one experiment: the variants with a finished run."""
    done = {label: variant for label, variant in variants.items() if variant.finished}
    table = []
    for variant in done.values():
        bp = _backpropagation(variant, done.values())
        table.append(_row(variant, _gap(variant, bp), None if bp is None else bp.paper.get("final_mean")))
    return table


def _backpropagation(variant: Variant, among: Iterable[Variant]) -> Variant | None:
    """Return the `bp` to compare with: of those of the same length the only one, or that of the same task."""
    epochs = variant.recipe.train.epochs
    found = [other for other in among if other.variant == "bp" and other.recipe.train.epochs == epochs]
    same = [other for other in found if task_of(other) == task_of(variant)]
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
    mean, std = mean_and_std(accuracies)
    best_mean, best_std = mean_and_std(max(run.accuracies) for run in variant.finished)
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
        seconds=fmean(sum(record.seconds or 0 for record in run.records) for run in variant.finished),
    )
