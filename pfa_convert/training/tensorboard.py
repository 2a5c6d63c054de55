"""The log's figures for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from pfa_convert.training.record import EpochRecord


@contextmanager
def tensorboard(folder: Path, completed: int) -> Iterator[Callable[[EpochRecord], None]]:
    """Yield the function that writes an epoch's record; it does nothing without the package `tensorboard`.

    Args:
        folder: where the event files go.
        completed: epochs that the run has behind it; what was written of later ones is hidden.
    """
    if find_spec("tensorboard") is None:
        yield lambda record: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, purge_step=completed + 1) as writer:

        def write(record: EpochRecord) -> None:
            scalars = {key: value for key, value in vars(record).items() if isinstance(value, float)}
            for site, values in record.alignment.items():
                scalars |= {f"{key}/{site}": value for key, value in values.items()}
            for site, degrees in (record.gradient_angle_deg or {}).items():
                scalars[f"gradient_angle_deg/{site}"] = degrees
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, record.epoch)

        yield write
