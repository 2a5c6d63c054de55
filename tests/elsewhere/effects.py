"""What a model is, down to every attribute, so that a change can be named: by itself or against another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return each module's class and attributes by name, their values where they are plain."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found[f"{name}: class"] = type(module)
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = _described(value)
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of what two snapshots of one model do not have in common."""
    return sorted(
        key for key in before.keys() | after.keys() if before.get(key, _ABSENT) != after.get(key, _ABSENT)
    )


def values(model: nn.Module) -> dict[str, Any]:
    """Return the plain attributes, tensors' values among them, of each of the model's own modules.

    They are what a forward may change: buffers, counters, kept tensors. So two models can be compared.
    """
    found: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, value in (vars(module) | module._buffers).items():
            if isinstance(value, (*PLAIN, Tensor)) and not key.startswith("_"):
                found[f"{name}.{key}"] = value
    return found


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Return the names of the attributes that differ, or that `ours` lacks."""
    return sorted(key for key, value in theirs.items() if not _equal(ours.get(key, _ABSENT), value))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return type(a) is type(b) and a == b


def _described(value: Any) -> Any:
    """Return a plain value, a container's entries, a tensor's identity and version, or the identity."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, dict):
        return {key: _described(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_described(entry) for entry in value]
    if isinstance(value, Tensor) and not value.is_inference():
        return id(value), value._version, value.requires_grad, id(value.grad)
    return id(value)


_ABSENT = object()
