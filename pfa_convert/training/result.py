"""What a run ends with."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from pfa_convert.alignment import alignment, feedback_of, report_of
from pfa_convert.inspection import share_of_start
from pfa_convert.training.run_folder import RunFolder
from pfa_convert.training.session import Session


@dataclass(frozen=True)
class RunResult:
    """What a run ended with: accuracies in percent, angles in degrees, by site at the end."""

    name: str
    seed: int
    epochs: int
    evaluated_on: str
    final_top1: float
    best_top1: float
    best_epoch: int
    test_top1_at_best: float | None
    angle_deg: dict[str, float]
    norm_ratio: dict[str, float]
    seconds: float
    folder: str
    start_left: dict[str, float] = field(default_factory=dict)
    """By site, the share of a plastic `F` that is what it began with."""


def finish(session: Session, folder: RunFolder) -> RunResult:
    """Return the result of a run that has come to its end; the main process writes it."""
    progress, angles = session.progress, alignment(session.model)
    top1 = session.score(session.data.evaluation).top1 if progress.top1 is None else progress.top1
    result = RunResult(
        name=session.recipe.name,
        seed=session.seed,
        epochs=session.recipe.train.epochs,
        evaluated_on=session.data.evaluation_name,
        final_top1=top1,
        best_top1=progress.best_top1,
        best_epoch=progress.best_epoch,
        test_top1_at_best=progress.test_top1_at_best,
        angle_deg={site: value["angle_deg"] for site, value in angles.items()},
        norm_ratio={site: value["norm_ratio"] for site, value in angles.items()},
        seconds=round(progress.seconds, 2),
        folder=str(folder.path),
        start_left=_start_left(session),
    )
    if session.processes.main:
        folder.finish(asdict(result))
    session.processes.wait()
    return result


def _start_left(session: Session) -> dict[str, float]:
    """Return by site the share of its start in a plastic `F`."""
    left = {
        site.name: share_of_start(feedback, session.model.get_parameter(site.weight))
        for site in report_of(session.model).sites
        if (feedback := feedback_of(session.model, site.weight)) is not None
    }
    return {name: share for name, share in left.items() if not math.isnan(share)}
