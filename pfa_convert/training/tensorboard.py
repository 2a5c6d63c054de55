"""The log's figures for TensorBoard, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes each epoch's record as scalars; does nothing without the package `tensorboard`.

    Args:
        folder: where the event files go.
        completed: epochs that the run has behind it; what was written of later ones is hidden.
    """

    def __init__(self, folder: Path, completed: int) -> None:
        self._writer: Any = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(folder, purge_step=completed + 1)

    def add(self, record: dict[str, Any]) -> None:
        """Write one epoch's record."""
        if self._writer is None:
            return
        epoch = record["epoch"]
        for key, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(key, value, epoch)
        for site, values in record["alignment"].items():
            for key, value in values.items():
                self._writer.add_scalar(f"{key}/{site}", value, epoch)
        for site, degrees in record.get("gradient_angle_deg", {}).items():
            self._writer.add_scalar(f"gradient_angle_deg/{site}", degrees, epoch)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
