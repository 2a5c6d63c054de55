"""Where a loss that is not finite began: the epoch is run again, and every value in it looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pfa_convert.training.batch import batches, train_batch
from pfa_convert.training.checkpoint import load_checkpoint
from pfa_convert.training.session import Session


class NotFinite(Exception):
    """Raised at the first value that is not finite; its text says where that is."""


def first_not_finite(session: Session, checkpoint: Path, epoch: int) -> str:
    """Run the epoch again from the last checkpoint, and return where the first such value appears."""
    if session.processes.distributed:
        return "run it in one process to see where that begins"
    load_checkpoint(session, checkpoint)
    gradients = not session.scaler.is_enabled()
    try:
        with stopping_at_the_first(session.model, session.optimizer, gradients):
            for batch in batches(session, epoch):
                loss, _ = train_batch(session, batch)
                if not _finite(loss):
                    break
    except NotFinite as found:
        return f"first not finite was {found}"
    return "only the loss itself was not finite"


@contextmanager
def stopping_at_the_first(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradients: bool
) -> Iterator[None]:
    """Raise NotFinite as soon as a module's output, a gradient or a weight is not finite.

    Args:
        model: the model; if it is compiled, it runs uncompiled meanwhile.
        optimizer: its steps are followed by a look at the weights.
        gradients: look at the gradients too; with a GradScaler they may well be infinite.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    handles: list[Any] = []

    def look_at_output(name: str, output: Any) -> None:
        if not all(_finite(value) for value in tree_leaves(output)):
            raise NotFinite(f"the output of {name or 'the model'}")

    def look_at_gradient(parameter: Tensor) -> None:
        if not _finite(parameter.grad):
            raise NotFinite(f"the gradient of {names[parameter]}")  # type: ignore[index]

    def look_at_weights(*_: Any) -> None:
        for parameter, name in names.items():
            if not _finite(parameter):
                raise NotFinite(f"the update of {name}")

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(lambda _m, _i, out, name=name: look_at_output(name, out)))
    if gradients:
        learned = [parameter for parameter in names if parameter.requires_grad]
        handles += [p.register_post_accumulate_grad_hook(look_at_gradient) for p in learned]
    handles.append(optimizer.register_step_post_hook(look_at_weights))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(value.isfinite().all())
