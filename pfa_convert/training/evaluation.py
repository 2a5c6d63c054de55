"""Judging a model: loss and accuracy over a split, and the module where a NaN began."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfa_convert.data.base import Share, Split


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


class Tally:
    """Sums of loss and correct answers, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Count one batch with its mean loss."""
        logits = logits.detach()
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(targets[:, None])
        count = len(targets)
        found = torch.stack([loss.detach().double() * count, top[:, 0].sum().double(), top.sum().double()])
        self._sums[:3] += found
        self._sums[3] += count

    def score(self) -> Score:
        """Return the means; with several processes, over all of them."""
        sums = self._sums.clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        loss, top1, top5, count = sums.tolist()
        count = max(count, 1)
        return Score(loss / count, 100 * top1 / count, 100 * top5 / count)


@torch.no_grad()
def evaluate(
    model: Any, split: Split, batch_size: int, share: Share, precision: str, device: torch.device
) -> Score:
    """Return the model's score on a split; every image counts exactly once."""
    was_training = model.training
    model.eval()
    tally = Tally(device)
    for images, targets in split.batches(batch_size, share):
        if len(targets):
            with autocast(precision, device):
                logits = model(images)
            tally.add(functional.cross_entropy(logits.float(), targets), logits, targets)
    model.train(was_training)
    return tally.score()


@torch.no_grad()
def first_nan(model: nn.Module, images: Tensor) -> str:
    """Return where the first value that is not finite appears: a parameter, or a module's output."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"parameter {name}"
    culprits: list[str] = []

    def look(name: str, output: Any) -> None:
        tensors: Iterable[Any] = output if isinstance(output, list | tuple) else [output]
        if any(isinstance(t, Tensor) and not t.isfinite().all() for t in tensors):
            culprits.append(name)

    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: look(name, output))
        for name, module in model.named_modules()
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return f"output of {culprits[0] or 'the model'}" if culprits else "the loss"
