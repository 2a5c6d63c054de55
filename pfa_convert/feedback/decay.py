"""At which rate each optimizer lets a weight decay: what a plastic feedback weight forgets at.

A decay is linear (SGD: it is part of the gradient, and takes its way), or a factor beside the update (AdamW:
decoupled), or not separate from the update (Adam with L2: the preconditioner rescales it with the gradient).
The last is part of what the feedback weight receives, and nothing is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

Group: TypeAlias = Mapping[str, Any]
"""A parameter group of an optimizer."""

Factor: TypeAlias = Callable[[Group], Any]
"""What a group's weights were multiplied by in a step."""


@dataclass(frozen=True)
class Decay:
    """`advance(forgetting, group)` makes a step on the tensors `forgetting` of weights, `(weights, 3)`.

    `reason` is what `couple` says of it, where there is something to say. `carries(group)` tells whether the
    step depends on earlier ones, as a momentum does.
    """

    advance: Callable[[Tensor, Group], Tensor]
    reason: str = ""
    carries: Callable[[Group], bool] = lambda group: False

    def with_forgetting(self, steps: float) -> Decay:
        """Return the decay with a forgetting beside it, of which `s` loses its `1 / steps` in a step."""
        return Decay(
            lambda forgetting, group: _multiplied(self.advance(forgetting, group), 1 - 1 / steps),
            f"forgets its start in {steps:g} steps, as asked for",
            self.carries,
        )


def decay_of(optimizer: Optimizer, group: Group) -> Decay:
    """Return how the optimizer lets the weights of one of its groups decay."""
    kind = type(optimizer)
    name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    known = name in _FACTORS or name in _NEVER_DECOUPLED
    decays = bool(group.get("weight_decay", not known))
    if kind is torch.optim.SGD:
        return Decay(_sgd, "" if decays else _NO_DECAY, lambda group: group["momentum"] != 0)
    if kind in _OWN or (name in _FACTORS and _is_decoupled(group)):
        factor = _OWN.get(kind) or _FACTORS[name]
        begins = name == "timm.Adopt"
        advance = _adopt if begins else _multiplied
        return Decay(
            lambda forgetting, present: advance(forgetting, factor(present)),
            "" if decays else _NO_DECAY,
            lambda present: begins,
        )
    if known:
        through = f"the decay of {kind.__name__} passes its preconditioner: s stays 1; {_REMEDY}"
        return Decay(_nothing, through if decays else _NO_DECAY)
    unknown = f"how {kind.__name__} decays is not known: s stays 1; register_decay, or {_REMEDY}"
    return Decay(_nothing, unknown)


def register_decay(optimizer: type[Optimizer], factor: Factor) -> None:
    """Say how an optimizer of one's own decays its weights beside its update.

    Args:
        optimizer: the class; a class derived from it is another optimizer.
        factor: given a parameter group at the end of a step, what each of its weights was multiplied by,
            such as `lambda group: 1 - group["lr"] * group["weight_decay"]`.
    """
    _OWN[optimizer] = factor


_OWN: dict[type[Optimizer], Factor] = {}

_REMEDY = "couple(..., forgetting=STEPS) forgets"
_NO_DECAY = f"weight_decay is 0: s stays 1; {_REMEDY}"


def _sgd(forgetting: Tensor, group: Group) -> Tensor:
    """Make the step of SGD on `s`, for a parameter without gradient, in SGD's own order."""
    s, v, started = forgetting.unbind(dim=1)
    d = group["weight_decay"] * s
    if group["momentum"] != 0:
        v = group["momentum"] * v + (1 - group["dampening"] * started) * d
        started = torch.ones_like(started)
        d = d + group["momentum"] * v if group["nesterov"] else v
    return torch.stack([s - group["lr"] * d, v, started], dim=1)


def _multiplied(forgetting: Tensor, factor: Any) -> Tensor:
    s, v, started = forgetting.unbind(dim=1)
    return torch.stack([s * factor, v, started], dim=1)


def _adopt(forgetting: Tensor, factor: Any) -> Tensor:
    """Adopt's first step moves nothing."""
    s, v, started = forgetting.unbind(dim=1)
    return torch.stack([s * torch.where(started > 0, factor, 1.0), v, torch.ones_like(started)], dim=1)


def _nothing(forgetting: Tensor, group: Group) -> Tensor:
    return forgetting


def _is_decoupled(group: Group) -> bool:
    """Whether the group's decay is a factor that the group itself tells, where that is an option."""
    decoupled = ("decoupled_weight_decay", "decoupled_decay", "decoupled")
    other = group.get("relative_step") or group.get("stochastic_weight_decay")
    scaled = group.get("fallback_lr_scale", 1.0) != 1.0
    return all(group.get(flag, True) for flag in decoupled) and not other and not scaled


def _by_rate(group: Group) -> Any:
    """`1 - lr wd`; timm's corrected decay is `1 - lr^2 wd / (highest lr)`."""
    lr = group["lr"]
    if group.get("corrected_weight_decay"):
        lr = lr**2 / group["max_lr_snapshot"]
    return 1 - lr * group["weight_decay"]


def _proximal(group: Group) -> Any:
    """Adan's `1 / (1 + lr wd)`, unless `no_prox`."""
    decay = group["lr"] * group["weight_decay"]
    return 1 - decay if group["no_prox"] else 1 / (1 + decay)


def _fixed_or_by_rate(group: Group) -> Any:
    """AdaBelief's `1 - wd` with `fixed_decay`."""
    return 1 - group["weight_decay"] if group["fixed_decay"] else _by_rate(group)


def _unscaled_or_by_rate(group: Group) -> Any:
    """Big Vision's Adafactor with `unscaled_wd`: `1 - wd`, or `1 - lr wd / (highest lr)`."""
    if not group["unscaled_wd"]:
        return _by_rate(group)
    lr = group["lr"] / group["max_lr_snapshot"] if group.get("corrected_weight_decay") else 1
    return 1 - lr * group["weight_decay"]


_TORCH = ("Adafactor", "Adam", "AdamW", "Muon", "NAdam", "RAdam")
_TIMM = (
    *("AdamWLegacy", "Adafactor", "Adahessian", "Adopt", "Kron", "Lamb", "LaProp", "Lion", "MADGRAD", "Mars"),
    *("Muon", "NAdamW", "NvNovoGrad", "RAdamLegacy", "RMSpropTF", "SGDW"),
)

_FACTORS: dict[str, Factor] = {
    **{f"torch.{name}": _by_rate for name in _TORCH},
    **{f"timm.{name}": _by_rate for name in _TIMM},
    "timm.AdaBelief": _fixed_or_by_rate,
    "timm.AdafactorBigVision": _unscaled_or_by_rate,
    "timm.Adan": _proximal,
}
"""By package and name of the optimizer; read from the sources of PyTorch 2.14 and timm 1.0.31."""

_NEVER_DECOUPLED = {
    *(
        f"torch.{name}"
        for name in ("Adadelta", "Adagrad", "Adamax", "LBFGS", "RMSprop", "Rprop", "SparseAdam")
    ),
    *("timm.Lars", "timm.NAdamLegacy"),
}
