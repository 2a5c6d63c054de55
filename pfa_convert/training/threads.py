"""How many threads a run takes: on small batches, threads only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

WORK_PER_THREAD = 20e6
"""Operations of a batch's forward pass; with fewer of them, one more thread costs more than it gives."""


@torch.no_grad()
def suitable_threads(model: nn.Module, image_shape: tuple[int, ...], batch_size: int, most: int) -> int:
    """Return one thread for each `WORK_PER_THREAD`, at least one and at most `most`.

    A function of sizes alone, so that a run's bits do not depend on how busy the machine is.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type != "cpu":
        return most
    was_training = model.training
    # A model that is to be compiled is counted as it was written: compiled code has no operations to count.
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *image_shape))
    model.train(was_training)
    return max(1, min(most, int(counter.get_total_flops() * batch_size / WORK_PER_THREAD)))


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
