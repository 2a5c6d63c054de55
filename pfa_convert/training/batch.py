"""One batch: which images are in it, and how the model learns from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from pfa_convert.data.base import batch_starts
from pfa_convert.errors import UserError
from pfa_convert.feedback.phase import feedback_phase
from pfa_convert.seeds import derived_seed
from pfa_convert.training.evaluation import at_least_float32, autocast, to_device_format
from pfa_convert.training.session import Session


@dataclass(frozen=True)
class Batch:
    """This process's shard of a batch; `accumulation` successive batches are a group, which makes a step."""

    images: Tensor
    targets: Tensor
    number: int
    """From 1 on, within the epoch."""
    step: int
    """Of the optimizer, over the whole run, from 1 on: that which this batch takes part in."""
    begins_group: bool
    ends_group: bool
    size: int
    """Images of all processes together."""
    weight: float
    """What the batch's mean loss counts, so that the gradient is that of the mean over the group's images."""


def batches(session: Session, epoch: int) -> Iterator[Batch]:
    """Yield the batches of an epoch that are left, in an order that depends on seed and epoch alone."""
    data, shard, done = session.data.train, session.processes.shard, session.progress.batch
    size, accumulation = session.recipe.data.batch_size, session.recipe.train.gradient_accumulation
    count = len(batch_starts(len(data), size, shard, training=True))
    images_in_all = min(count * size, len(data))
    order_seed = derived_seed(session.seed, f"images of epoch {epoch}")
    for number, (images, targets) in enumerate(data.batches(size, shard, order_seed, done), start=done + 1):
        before_group = (number - 1) // accumulation * accumulation * size
        images_in_group = min(accumulation * size, images_in_all - before_group)
        yield Batch(
            images,
            targets,
            number,
            step=(epoch - 1) * math.ceil(count / accumulation) + math.ceil(number / accumulation),
            begins_group=(number - 1) % accumulation == 0,
            ends_group=number % accumulation == 0 or number == count,
            size=min(size, images_in_all - (number - 1) * size),
            # The processes' gradients are averaged, not added up.
            weight=len(targets) * shard.world / images_in_group,
        )


def clip(session: Session, most: float) -> None:
    """Scale all gradients so that the norm of the plain model's is at most `most`, whatever the strategy."""
    norm = nn.utils.get_total_norm([p.grad for p in session.plain if p.grad is not None])
    nn.utils.clip_grads_with_norm_(session.model.parameters(), most, norm)


def train_batch(session: Session, batch: Batch) -> tuple[Tensor, Tensor]:
    """Learn from a batch and return its mean loss and logits; the optimizer steps where the group ends."""
    section, optimizer, scaler = session.recipe.train, session.optimizer, session.scaler
    if batch.begins_group:
        session.begin_group()
    together = batch.ends_group or not session.processes.distributed
    with nullcontext() if together else session.forward.no_sync():
        with autocast(section.precision, session.processes.device):
            logits = session.forward(to_device_format(batch.images, section))
            if not isinstance(logits, Tensor):
                raise UserError(f"in training the model returns a {type(logits).__name__}, not logits")
            loss = functional.cross_entropy(
                at_least_float32(logits), batch.targets, label_smoothing=section.label_smoothing
            )
        scaler.scale(loss if batch.weight == 1 else loss * batch.weight).backward()
    if batch.ends_group:
        session.end_group()
        if section.clip_norm is not None:
            scaler.unscale_(optimizer)
            clip(session, section.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if session.average is not None:
            session.average.update()
        if session.phases and batch.step % section.phase_interval == 0:
            feedback_phase(session.model)
    return loss, logits
