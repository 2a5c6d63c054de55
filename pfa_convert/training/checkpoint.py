"""Checkpoints: everything that a run's next step depends on, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfa_convert.errors import UserError, one_line
from pfa_convert.files import load_tensors, save_tensors
from pfa_convert.training.session import Progress, Session


def save_checkpoint(session: Session, path: Path) -> None:
    """Write the state of a run; the file appears whole or not at all. Only the main process writes."""
    session.processes.share_buffers(session.buffers)
    if session.coupling is not None:
        session.progress.coupled_steps = session.coupling.steps
    if not session.processes.main:
        return
    tensors = {f"model.{name}": tensor for name, tensor in session.model.state_dict().items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    if session.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in session.average.averages.items()}
    scalars: dict[str, dict[str, Any]] = {}
    for index, state in session.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    progress, scaler = asdict(session.progress), session.scaler.state_dict()
    save_tensors(path, tensors, {"progress": progress, "optimizer": scalars, "scaler": scaler})


def load_checkpoint(session: Session, path: Path) -> None:
    """Go back to the state in a checkpoint, that of the random numbers included.

    Raises:
        UserError: if the file is damaged, or of another model or recipe.
    """
    tensors, header = load_tensors(path)
    _load_model(session.model, _below("model", tensors), path)
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in header["optimizer"].items()}
    for name, tensor in _below("optimizer", tensors).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer = session.optimizer
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if session.average is not None:
        session.average.load(_below("average", tensors))
    if header.get("scaler"):
        session.scaler.load_state_dict(header["scaler"])
    session.progress = Progress(**header["progress"])
    if session.coupling is not None:
        session.coupling.steps = session.progress.coupled_steps
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def load_model(path: Path, model: nn.Module) -> None:
    """Restore the model as it was judged, with averaged weights if the run has them.

    Raises:
        UserError: if the file is damaged, or of another model or recipe.
    """
    tensors, _ = load_tensors(path)
    _load_model(model, _below("model", tensors) | _below("average", tensors), path)


def _load_model(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"belongs to another model or recipe: {one_line(error, 200)}", where=str(path)
        ) from None


def _below(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a part of the checkpoint, by their names within it."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
