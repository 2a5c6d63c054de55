"""A whole training run, from top to bottom: `train` prepares it, `run` is the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pfa_convert.alignment import alignment, feedback_of, report_of
from pfa_convert.errors import UserError
from pfa_convert.inspection import share_of_start
from pfa_convert.recipe import Recipe
from pfa_convert.training.batch import Batch, batches, train_batch
from pfa_convert.training.captured import CapturedStep
from pfa_convert.training.checkpoint import load_checkpoint, save_checkpoint
from pfa_convert.training.diagnosis import first_not_finite
from pfa_convert.training.distributed import join
from pfa_convert.training.earlier import notice
from pfa_convert.training.environment import environment
from pfa_convert.training.evaluation import RunningScore
from pfa_convert.training.record import EpochRecord, RunResult, means
from pfa_convert.training.run_folder import RunFolder
from pfa_convert.training.schedules import set_schedules
from pfa_convert.training.session import Session
from pfa_convert.training.setup import compilation, determinism, make_data
from pfa_convert.training.stopping import Stopped, StopRequest
from pfa_convert.training.tensorboard import tensorboard
from pfa_convert.training.threads import suitable_threads, using_threads
from pfa_convert.training.watcher import Watcher

CHECK_INTERVAL = 50
"""Steps between two checks that the losses are finite, which synchronise processes and device."""


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
    seed = recipe.train.seeds[0] if seed is None else int(seed)
    folder = RunFolder(Path(output) if output else Path("runs") / recipe.name / f"seed-{seed}")
    resuming = folder.continues(recipe, seed, resume=resume, overwrite=overwrite)
    if resuming and folder.is_finished(recipe):
        return folder.read_result()
    processes = join(device)
    with ExitStack() as stack:
        stack.enter_context(determinism(recipe.train.deterministic))
        stack.enter_context(compilation() if recipe.train.compile else nullcontext())
        stop = stack.enter_context(StopRequest())
        with processes.main_first():
            data = make_data(recipe.data, data_root, processes.device)
        session = Session(recipe, seed, data, processes)
        learn = CapturedStep(session) if session.captured else partial(train_batch, session)
        watcher = watcher if watcher and processes.main else Watcher()
        most = torch.get_num_threads()
        enough = threads or suitable_threads(session.model, data.image_shape, recipe.data.batch_size, most)
        if enough < most and threads is None:
            watcher.note(f"threads: {enough} of {most}, since the batches are small; --threads sets them")
        stack.enter_context(using_threads(enough))
        processes.by_main(lambda: stack.enter_context(folder.held()))
        # Asked again: before it was held, another process may have begun or finished the run.
        resuming = folder.continues(recipe, seed, resume=resume, overwrite=overwrite)
        if resuming and folder.is_finished(recipe):
            return folder.read_result()
        continuing = resuming and folder.last.exists()
        processes.wait()
        surroundings = environment(seed, data.folder, processes.device)
        if continuing:
            load_checkpoint(session, folder.last)
            if said := notice(folder.read_environment()):
                watcher.note(said)
            done = session.progress.epoch
            if (logged := sum(1 <= record.epoch <= done for record in folder.records())) < done:
                watcher.note(f"{folder.log} has {logged} of the {done} epochs that are done")
            processes.by_main(lambda: folder.go_on(recipe, surroundings, done))
        else:
            processes.by_main(lambda: folder.start(recipe, surroundings))
            save_checkpoint(session, folder.last)
        if recipe.train.compile and not session.compiled:
            watcher.note("no C++ compiler found (CXX names one): the model runs uncompiled")
        if recipe.train.cuda_graph and not session.captured and processes.device.type == "cuda":
            watcher.note("train.cuda_graph: among several processes no step is recorded")
        if not continuing and (left := session.expected_start_left()) is not None:
            watcher.note(f"by its schedules, the run leaves {left:.2%} of what F began with")
        log: list[Callable[[EpochRecord], None]] = []
        if processes.main:
            folder.truncate(session.progress.epoch)
            events = stack.enter_context(tensorboard(folder.path / "tensorboard", session.progress.epoch))
            log = [folder.append, events]
        return run(session, learn, folder, log, stop, watcher)


def run(
    session: Session,
    learn: Callable[[Batch], tuple[Tensor, Tensor]],
    folder: RunFolder,
    log: Sequence[Callable[[EpochRecord], None]],
    stop: StopRequest,
    watcher: Watcher,
) -> RunResult:
    """Train for the epochs that are left, by `learn`; `log` writes their records, in the main process."""
    recipe, data, processes, progress = session.recipe, session.data, session.processes, session.progress
    if log and not folder.records() and not progress.batch:
        angles, gradients = alignment(session.model), session.gradient_angles()
        untrained = EpochRecord(0, **means(angles), alignment=angles, gradient_angle_deg=gradients)
        for write in log:
            write(untrained)
    done = progress.epoch * len(data.train) + progress.batch * recipe.data.batch_size
    watcher.start(recipe, session.seed, recipe.train.epochs * len(data.train) - done)

    for epoch in range(progress.epoch + 1, recipe.train.epochs + 1):
        started, images = time.perf_counter(), 0
        set_schedules(recipe.train, session.optimizer, epoch - 1)
        running = RunningScore(processes.device, progress.sums if processes.main else ())
        for batch in batches(session, epoch):
            loss, logits = learn(batch)
            running.add(loss, logits, batch.targets)
            images += batch.size
            watcher.step(batch.size)
            asked = stop.made and not processes.distributed
            if batch.ends_group and (asked or batch.step % CHECK_INTERVAL == 0):
                stopping, broken = processes.any(stop.made, not running.finite())
                if broken:
                    break
                if stopping:
                    progress.pause(batch.number, running.sums(), time.perf_counter() - started)
                    save_checkpoint(session, folder.last)
                    stopped = f"stopped by {stop.by or 'another process'} in epoch {epoch}"
                    raise Stopped(f"{stopped}; continue with --resume", where=recipe.name)
        trained = running.score()
        if not math.isfinite(trained.loss):
            culprit = first_not_finite(session, folder.last, epoch)
            raise UserError(f"the loss is {trained.loss} in epoch {epoch}: {culprit}", where=recipe.name)

        speed = images / (time.perf_counter() - started)
        scores, angles, group = _scores(session), alignment(session.model), session.optimizer.param_groups[0]
        record = EpochRecord(
            epoch,
            train_loss=trained.loss,
            train_top1=trained.top1,
            **scores,
            **means(angles),
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            seconds=round(time.perf_counter() - started, 3),
            images_per_second=round(speed, 1),
            alignment=angles,
            gradient_angle_deg=session.gradient_angles(),
        )
        if progress.complete(record):
            save_checkpoint(session, folder.best)
        for write in log:
            write(record)
        save_checkpoint(session, folder.last)
        watcher.epoch(record)
    return _finish(session, folder)


def _scores(session: Session) -> dict[str, float]:
    """Evaluate the model; on the test images too where it is the best so far on those held out."""
    data = session.data
    scores = {data.evaluation_name: session.score(data.evaluation)}
    if data.test is not None and scores[data.evaluation_name].top1 > session.progress.best_top1:
        scores["test"] = session.score(data.test)
    return {
        f"{split}_{key}": value for split, score in scores.items() for key, value in asdict(score).items()
    }


def _finish(session: Session, folder: RunFolder) -> RunResult:
    """Return the result of a run that has come to its end; the main process writes it."""
    progress, angles = session.progress, alignment(session.model)
    top1 = session.score(session.data.evaluation).top1 if progress.top1 is None else progress.top1
    result = RunResult(
        name=session.recipe.name,
        seed=session.seed,
        epochs=session.recipe.train.epochs,
        evaluated_on=session.data.evaluation_name,
        final_top1=top1,
        best_top1=progress.best_top1 if progress.best_epoch else top1,
        best_epoch=progress.best_epoch,
        test_top1_at_best=progress.test_top1_at_best,
        angle_deg={site: value["angle_deg"] for site, value in angles.items()},
        norm_ratio={site: value["norm_ratio"] for site, value in angles.items()},
        seconds=round(progress.seconds, 2),
        folder=str(folder.path),
        start_left=_start_left(session),
    )
    if session.processes.main:
        folder.finish(result)
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
