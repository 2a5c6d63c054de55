"""Checkpoints: everything that a run depends on from there on, in one file; nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfa_convert.errors import UserError, one_line
from pfa_convert.files import load_tensors, save_tensors


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds beside model, optimizer and random numbers."""

    averages: dict[str, Tensor]
    scaler: dict[str, Any]
    progress: dict[str, Any]


def save_training(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: Mapping[str, Tensor],
    scaler: Mapping[str, Any],
    progress: Mapping[str, Any],
) -> None:
    """Write a checkpoint; the file appears whole or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"random.{name}": state for name, state in _random_states().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in averages.items()}
    scalars: dict[str, dict[str, Any]] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    save_tensors(path, tensors, {"progress": progress, "optimizer": scalars, "scaler": scaler})


def load_model(path: Path, model: nn.Module) -> None:
    """Restore the model alone; raises UserError if the file is damaged, or of another model or recipe."""
    tensors, _ = load_tensors(path)
    _load_model(path, model, {name[6:]: t for name, t in tensors.items() if name.startswith("model.")})


def _load_model(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"belongs to another model or recipe: {one_line(error, 200)}", where=str(path)
        ) from None


def load_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Loaded:
    """Restore model, optimizer and random numbers; return the rest.

    Raises:
        UserError: if the file is damaged, or of another model or recipe.
    """
    tensors, header = load_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "random": {}, "average": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    _load_model(path, model, parts["model"])
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in header["optimizer"].items()}
    for name, tensor in parts["optimizer"].items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(parts["random"]["cpu"])
    if "cuda" in parts["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(parts["random"]["cuda"])
    return Loaded(parts["average"], header.get("scaler", {}), header["progress"])


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
