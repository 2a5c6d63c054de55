"""What `couple` refuses: optimizers that do not tell of their steps, miss parameters, or have begun."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pfa_convert.errors import UserError
from pfa_convert.feedback.collapsed import Collapsed
from pfa_convert.feedback.coupled import CoupledOptimizer
from pfa_convert.feedback.plastic import PlasticPathway
from pfa_convert.feedback.weight import FeedbackWeight


def refuse_wrapper(optimizer: Any) -> None:
    """Refuse what is no optimizer of PyTorch with hooks for its steps."""
    # A wrapper may be an Optimizer by its class and yet have no hooks, as accelerate's.
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise UserError(
            f"optimizer: a {type(optimizer).__name__} is no optimizer of PyTorch that tells of its steps; "
            "couple with the one that it wraps, and give several one after the other"
        )


def owner_of_each(optimizers: list[CoupledOptimizer]) -> dict[Any, CoupledOptimizer]:
    """Return the optimizer of each parameter; refuse a parameter that is in two."""
    found: dict[Any, CoupledOptimizer] = {}
    for owner in optimizers:
        for parameter in (p for group in owner.optimizer.param_groups for p in group["params"]):
            if parameter in found:
                raise UserError(
                    f"optimizer: a parameter of shape {tuple(parameter.shape)} is given to couple twice, in "
                    f"{type(found[parameter].optimizer).__name__} and {type(owner.optimizer).__name__}"
                )
            found[parameter] = owner
    return found


def refuse_incomplete(
    name: str, weight: Tensor, feedback: FeedbackWeight, owner_of: dict[Any, CoupledOptimizer]
) -> None:
    """Refuse a weight that no optimizer has, with its plastic state, or whose optimizer has made steps."""
    for parameter, label in [(weight, name), *((p, f"{name}: {n}") for n, p in feedback.named_parameters())]:
        if parameter.requires_grad and parameter not in owner_of:
            raise UserError(
                f"the optimizer misses the parameter {label}; give it all of model.parameters() after convert"
            )
    plastic = isinstance(feedback.pathway, (Collapsed, PlasticPathway))
    state = owner_of[weight].optimizer.state.get(weight) if weight in owner_of else None
    # Adagrad has a state from its birth, of no step.
    if plastic and feedback.as_drawn and state and state.get("step", 1) != 0:
        raise UserError("the optimizer has made steps already; couple before the first one")
