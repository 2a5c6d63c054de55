"""A whole training run, from top to bottom."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pfa_convert.alignment import alignment, feedback_of, report_of
from pfa_convert.data import load_data
from pfa_convert.errors import UserError
from pfa_convert.inspection import share_of_start
from pfa_convert.recipe import Recipe
from pfa_convert.training.diagnosis import first_not_finite
from pfa_convert.training.distributed import join
from pfa_convert.training.earlier import notice
from pfa_convert.training.environment import environment
from pfa_convert.training.epoch import train_epoch
from pfa_convert.training.evaluation import Score
from pfa_convert.training.run_folder import RunFolder
from pfa_convert.training.session import Session, determinism
from pfa_convert.training.stopping import Stopped, StopRequest
from pfa_convert.training.tensorboard import TensorBoard
from pfa_convert.training.threads import suitable_threads, using_threads
from pfa_convert.training.watcher import Watcher


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


def train(
    recipe: Recipe,
    *,
    data_root: str | Path | None = None,
    output: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    device: str | torch.device | None = None,
    watcher: Watcher | None = None,
) -> RunResult:
    """Run a recipe with one seed and return its result; in each process alike under `torchrun`.

    Args:
        recipe: what to run; its batch size is that of all processes together.
        data_root: the folder with the data; the recipe's by default.
        output: the run's folder; `runs/NAME/seed-N` by default.
        seed: decides weights, feedback weights and the order of images; the recipe's first by default.
        resume: continue from the folder's last checkpoint, or return the result of a finished run; a
            larger `train.epochs` extends one.
        overwrite: replace the run that the folder holds.
        threads: of the CPU; by default as many as batches of this size can use.
        device: where to train; a GPU if there is one.
        watcher: told of the progress.

    Raises:
        UserError: for a mistake in recipe, data or folder, or when the loss is no longer finite.
        Stopped: after Ctrl-C or SIGTERM, once everything is saved; `resume` continues bit for bit.
    """
    seed = recipe.train.seeds[0] if seed is None else seed
    folder = RunFolder(Path(output) if output else Path("runs") / recipe.name / f"seed-{seed}")
    resuming = folder.to_be_continued(recipe, seed, resume=resume, overwrite=overwrite)
    if resuming and folder.is_finished(recipe):
        return RunResult(**json.loads(folder.result.read_text()))
    with ExitStack() as stack:
        processes = stack.enter_context(join(device))
        stack.enter_context(determinism(recipe.train.deterministic))
        stop = stack.enter_context(StopRequest())
        section = recipe.data
        with processes.main_first():
            data = load_data(
                section.dataset,
                Path(data_root or section.root),
                validation=section.validation,
                device=processes.device,
                workers=section.workers,
                options=section.options,
            )
        session = Session(recipe, seed, data, processes)
        watcher = watcher if watcher and processes.main else Watcher()
        most = torch.get_num_threads()
        enough = threads or suitable_threads(session.model, data.image_shape, section.batch_size, most)
        if enough < most and threads is None:
            watcher.note(f"threads: {enough} of {most}, since the batches are small; --threads sets them")
        stack.enter_context(using_threads(enough))
        continuing = resuming and folder.last.exists()
        processes.wait()
        if continuing:
            session.load(folder.last)
            if said := notice(folder.surroundings()):
                watcher.note(said)
            if processes.main:
                folder.extend(recipe)
        else:
            if processes.main:
                folder.start(recipe, environment(seed, data.folder, processes.device))
            session.save(folder.last)
        if recipe.train.compile and not session.compiled:
            watcher.note("no C++ compiler found (CXX names one): the model runs uncompiled")
        if not continuing and (left := session.start_left()) is not None:
            watcher.note(f"by its schedules, the run leaves {left:.2%} of what F began with")
        return _run(session, folder, stop, watcher)


def _run(session: Session, folder: RunFolder, stop: StopRequest, watcher: Watcher) -> RunResult:
    """Train for the epochs that are left, with a checkpoint and a line in the log after each."""
    recipe, data, progress, main = session.recipe, session.data, session.progress, session.processes.main
    if main:
        folder.truncate(progress.epoch)
    board = TensorBoard(folder.path / "tensorboard", progress.epoch) if main else None
    if board is not None and not folder.records() and not progress.batch:
        untrained = _before_training(session)
        folder.append(untrained)
        board.add(untrained)
    done = progress.epoch * len(data.train) + progress.batch * recipe.data.batch_size
    watcher.start(recipe, session.seed, recipe.train.epochs * len(data.train) - done)
    for epoch in range(progress.epoch + 1, recipe.train.epochs + 1):
        record = _run_epoch(session, folder, epoch, stop, watcher)
        if board is not None:
            folder.append(record)
            board.add(record)
        session.save(folder.last)
        watcher.epoch(record)
    if board is not None:
        board.close()
    return _finish(session, folder)


def _run_epoch(
    session: Session, folder: RunFolder, epoch: int, stop: StopRequest, watcher: Watcher
) -> dict[str, Any]:
    """Train for an epoch, judge the model, keep it if it is the best, and return the line for the log."""
    started = time.perf_counter()
    images = len(session.data.train) - session.progress.batch * session.recipe.data.batch_size
    fitted = _fit(session, folder, epoch, stop, watcher)
    speed = images / (time.perf_counter() - started)
    scores = _judge(session)
    angles = alignment(session.model)
    seconds = time.perf_counter() - started
    top1 = {split: score.top1 for split, score in scores.items()}
    test_top1 = None if session.data.test is None else top1.get("test")
    if session.progress.complete(epoch, top1[session.data.evaluation_name], test_top1, seconds):
        session.save(folder.best)
    group = session.optimizer.param_groups[0]
    record = {
        "epoch": epoch,
        "train_loss": fitted.loss,
        "train_top1": fitted.top1,
        **{
            f"{split}_{key}": value for split, score in scores.items() for key, value in asdict(score).items()
        },
        **_means(angles),
        "lr": group["lr"],
        "weight_decay": group["weight_decay"],
        "seconds": round(seconds, 3),
        "images_per_second": round(speed, 1),
        "alignment": angles,
    }
    if session.recipe.train.gradient_angles:
        record["gradient_angle_deg"] = session.gradient_angles()
    return record


def _before_training(session: Session) -> dict[str, Any]:
    """Return the log's line for epoch 0: how far `F` is from `W` before anything is learned."""
    angles = alignment(session.model)
    record = {"epoch": 0, **_means(angles), "alignment": angles}
    if session.recipe.train.gradient_angles:
        record["gradient_angle_deg"] = session.gradient_angles()
    return record


def _fit(session: Session, folder: RunFolder, epoch: int, stop: StopRequest, watcher: Watcher) -> Score:
    """Train for an epoch; raises Stopped, with all saved, or UserError for a loss that is not finite."""
    started = time.perf_counter()
    fitted = train_epoch(session, epoch, stop, watcher)
    if fitted is None:
        session.progress.seconds += time.perf_counter() - started
        session.save(folder.last)
        raise Stopped(
            f"stopped by {stop.by or 'another process'} in epoch {epoch}; continue with --resume",
            where=session.recipe.name,
        )
    if not math.isfinite(fitted.loss):
        culprit = first_not_finite(session, folder.last, epoch)
        raise UserError(f"the loss is {fitted.loss} in epoch {epoch}: {culprit}", where=session.recipe.name)
    return fitted


def _judge(session: Session) -> dict[str, Score]:
    """Score the model by split; on the test images only where it is the best so far on the others."""
    data = session.data
    scores = {data.evaluation_name: session.judge(data.evaluation)}
    if data.test is not None and scores[data.evaluation_name].top1 > session.progress.best_top1:
        scores["test"] = session.judge(data.test)
    return scores


def _finish(session: Session, folder: RunFolder) -> RunResult:
    progress, angles = session.progress, alignment(session.model)
    top1 = session.judge(session.data.evaluation).top1 if progress.top1 is None else progress.top1
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
        start_left=_start_left(session.model),
    )
    if session.processes.main:
        folder.finish(asdict(result))
    session.processes.wait()
    return result


def _start_left(model: Any) -> dict[str, float]:
    """Return by site the share of its start in a plastic `F`."""
    left = {
        site.name: share_of_start(feedback, model.get_parameter(site.weight))
        for site in report_of(model).sites
        if (feedback := feedback_of(model, site.weight)) is not None
    }
    return {name: share for name, share in left.items() if not math.isnan(share)}


def _means(angles: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the means over the sites, of nothing where no rule sends the error along the layers."""
    if not angles:
        return {}
    return {key: fmean(value[key] for value in angles.values()) for key in ("angle_deg", "norm_ratio")}
