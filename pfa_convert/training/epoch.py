"""One epoch: the loop over the batches, the only one there is."""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfa_convert.data.base import batch_starts
from pfa_convert.errors import UserError
from pfa_convert.feedback.weight import feedback_phase
from pfa_convert.recipe import Recipe
from pfa_convert.seeds import derived_seed
from pfa_convert.training.evaluation import RunningScore, Score, at_least_float32, autocast, to_device_format
from pfa_convert.training.schedules import factor
from pfa_convert.training.session import Session
from pfa_convert.training.stopping import StopRequest
from pfa_convert.training.watcher import Watcher

CHECK_INTERVAL = 50
"""Steps between two checks that the losses are finite, which synchronise processes and device."""


def train_epoch(session: Session, epoch: int, stop: StopRequest, watcher: Watcher) -> Score | None:
    """Train on every image once, in an order that depends on seed and epoch alone.

    Returns the score, which is not finite where training was broken off for that, or None if it was
    stopped; `session.progress` then says where.
    """
    set_schedules(session.recipe, session.optimizer, epoch - 1)
    section, data, processes = session.recipe.train, session.data, session.processes
    batch_size, world = session.recipe.data.batch_size, processes.shard.world
    starts = batch_starts(len(data.train), batch_size, processes.shard, training=True)
    images_in_all = min(len(starts) * batch_size, len(data.train))
    group_size = section.gradient_accumulation * batch_size
    running = RunningScore(processes.device, session.progress.sums if processes.main else ())
    order_seed = derived_seed(session.seed, f"images of epoch {epoch}")
    batches = data.train.batches(batch_size, processes.shard, order_seed, session.progress.batch)
    shown, unseen = time.perf_counter(), 0
    for index, (images, targets) in enumerate(batches, start=session.progress.batch + 1):
        group_start = (index - 1) // section.gradient_accumulation * group_size
        in_group = min(group_size, images_in_all - group_start)
        last_of_group = index % section.gradient_accumulation == 0 or index == len(starts)
        together = last_of_group or not processes.several
        with nullcontext() if together else session.forward.no_sync():
            with autocast(section.precision, processes.device):
                logits = session.forward(to_device_format(images, section))
                loss = _loss(logits, targets, section.label_smoothing)
            # The mean over the group's images of all processes, whose gradients are averaged.
            share_of_group = len(targets) * world / in_group
            session.scaler.scale(loss if share_of_group == 1 else loss * share_of_group).backward()
        running.add(loss, logits, targets)
        unseen += len(targets) * world
        if (now := time.perf_counter()) - shown > 0.2:
            watcher.step(unseen)
            shown, unseen = now, 0
        if not last_of_group:
            continue
        _update(session)
        step = index // section.gradient_accumulation
        if session.phases and step % section.phase_interval == 0:
            feedback_phase(session.model)
        if step % CHECK_INTERVAL == 0 or (stop.made and not processes.several):
            stopping, broken = processes.any(stop.made, not running.finite())
            if broken:
                break
            if stopping:
                session.progress.batch, session.progress.sums = index, running.sums()
                return None
    watcher.step(unseen)
    return running.score()


def _loss(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    if not isinstance(logits, Tensor):
        raise UserError(f"in training the model returns a {type(logits).__name__}, not logits")
    return functional.cross_entropy(at_least_float32(logits), targets, label_smoothing=label_smoothing)


def _update(session: Session) -> None:
    """Make one step of the optimizer."""
    if session.recipe.train.clip_norm is not None:
        session.scaler.unscale_(session.optimizer)
        parameters = [p for group in session.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, session.recipe.train.clip_norm)
    session.scaler.step(session.optimizer)
    session.scaler.update()
    session.optimizer.zero_grad(set_to_none=True)
    if session.average is not None:
        session.average.update()


def set_schedules(recipe: Recipe, optimizer: torch.optim.Optimizer, completed: int) -> None:
    """Set learning rate and weight decay for the epoch after so many completed ones."""
    section = recipe.train
    for group in optimizer.param_groups:
        group["lr"] = section.optimizer.lr * factor(section.lr_schedule, completed, section.epochs)
        group["weight_decay"] = section.optimizer.weight_decay * factor(
            section.weight_decay_schedule, completed, section.epochs
        )
