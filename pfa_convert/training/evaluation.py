"""Judging a model: loss and accuracy over a split, exact also with several processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pfa_convert.data.base import Shard, Split
from pfa_convert.recipe import TrainSection


@dataclass(frozen=True)
class Score:
    """Mean loss in nats, top-1 and top-5 accuracy in percent."""

    loss: float
    top1: float
    top5: float


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context for `fp32`, `bf16` or `fp16`."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()


def to_device_format(images: Tensor, section: TrainSection) -> Tensor:
    """Return the images in the memory format that the recipe asks for."""
    return images.contiguous(memory_format=torch.channels_last) if section.channels_last else images


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits of half precision in float32, others as they are."""
    return logits.float() if logits.dtype.itemsize < 4 else logits


class RunningScore:
    """Sums of loss and correct answers, kept on the device until they are read.

    Args:
        device: where the sums are kept.
        sums: what `sums()` returned earlier, to go on from there.
    """

    def __init__(self, device: torch.device, sums: Sequence[float] = ()) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        if sums:
            self._sums.copy_(torch.tensor(sums, dtype=torch.float64))
        self._loss, self._top1, self._top5, self._count = self._sums.unbind()

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor, *, top5: bool = False) -> None:
        """Count one batch with its mean loss; counting the five best answers too takes longer."""
        count = len(targets)
        self._loss.add_(loss.detach(), alpha=count)
        self._count.add_(count)
        if top5:
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(targets[:, None])
            self._top1.add_(best[:, 0].sum())
            self._top5.add_(best.sum())
        else:
            self._top1.add_(logits.detach().argmax(1).eq(targets).sum())

    def finite(self) -> bool:
        """Return whether the sum of the losses of this process is finite; waits for the device."""
        return bool(self._loss.isfinite())

    def sums(self) -> list[float]:
        """Return the sums of loss, top-1, top-5 and images over all processes."""
        sums = self._sums.clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        return list(sums.tolist())

    def score(self) -> Score:
        """Return the means over all processes."""
        loss, top1, top5, count = self.sums()
        count = max(count, 1)
        return Score(loss / count, 100 * top1 / count, 100 * top5 / count)


@torch.no_grad()
def evaluate(
    model: Any, split: Split, batch_size: int, shard: Shard, section: TrainSection, device: torch.device
) -> Score:
    """Return the model's score on a split; every image counts exactly once."""
    was_training = model.training
    model.eval()
    running = RunningScore(device)
    for images, targets in split.batches(batch_size, shard):
        if len(targets):
            with autocast(section.precision, device):
                logits = at_least_float32(model(to_device_format(images, section)))
            running.add(functional.cross_entropy(logits, targets), logits, targets, top5=True)
    model.train(was_training)
    return running.score()
