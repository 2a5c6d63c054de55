"""Checking one rule on layers of every shape."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pfa_convert.convert import convert
from pfa_convert.errors import UserError
from pfa_convert.feedback.finding import feedback_weights
from pfa_convert.feedback.weight import FeedbackWeight
from pfa_convert.testing.cases import Case, cases, problem
from pfa_convert.testing.literal import EXACT, gradients, literal, relative_error

Formula = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def check_rule(name: str, options: Mapping[str, Any] | None = None, formula: Formula | None = None) -> None:
    """Check a rule on linear layers and convolutions of every kind; raise AssertionError otherwise.

    Its forward must be the plain layer's to the last bit; in float64, `dL/dW` and `dL/db` the plain ones, and
    `dL/dx` that of a layer with `F` for its weight. `F` must be the same for the same seed, and after a
    checkpoint.

    Args:
        name: the rule's name in RULES.
        options: its options.
        formula: `F` of the weight and of the feedback state by name, written another way, for layers without
            groups; what the rule computes must be equal to it.

    Raises:
        UserError: for an unknown rule or option, or a rule whose `F` has not the shape of the weight.
    """
    for case in cases():
        _check(case, name, dict(options or {}), formula)


def _check(case: Case, name: str, options: dict[str, Any], formula: Formula | None) -> None:
    where = f"{name} on {case.name}"
    x, delta = problem(case)
    single = convert(case.layer, name, options=options)
    _refuse_direct(single, where)
    same = torch.equal(single(x.float()), case.layer(x.float()))
    assert same, f"{where}: the forward is not the plain layer's"

    layer = copy.deepcopy(case.layer).double()
    converted = convert(layer, name, options=options)
    if not any(True for _ in feedback_weights(converted)):
        F = layer.get_parameter("weight").detach()
    else:
        F = _present_F(converted, where)
        if formula is not None and getattr(layer, "groups", 1) == 1:
            W, state = converted.get_parameter("weight").detach(), _state(converted)
            assert relative_error(F, formula(W, state)) <= EXACT, f"{where}: F is not the formula's"
        again = convert(layer, name, options=options)
        assert torch.equal(F, _present_F(again, where)), f"{where}: F is another one for the same seed"
        other = convert(layer, name, options=options, seed=1)
        other.load_state_dict(converted.state_dict())
        assert torch.equal(F, _present_F(other, where)), f"{where}: F is another one after a checkpoint"

    torch.manual_seed(0)
    below, own = gradients(converted, x, delta)
    expected_below, expected = literal(layer, F, x, delta)
    error = relative_error(below, expected_below)
    assert error <= EXACT, f"{where}: dL/dx is off by {error:.1e}, relatively, from that with F as the weight"
    for parameter, gradient in expected.items():
        error = relative_error(own[parameter], gradient)
        assert error <= EXACT, f"{where}: the gradient of {parameter} is off by {error:.1e}, relatively"


def _refuse_direct(converted: nn.Module, where: str) -> None:
    if not all(feedback.pathway.follows_weight for _, _, feedback in feedback_weights(converted)):
        raise UserError(f"{where}: its feedback weight does not stand beside the weight; check it by itself")


def _present_F(converted: nn.Module, where: str) -> Tensor:
    """Return `F`; a rule that draws it anew draws the same one in the backward pass after the same seed."""
    ((_, weight, feedback),) = feedback_weights(converted)
    torch.manual_seed(0)
    F = feedback.feedback_weight(weight)
    assert F.shape == weight.shape, f"{where}: F has the shape {tuple(F.shape)}"
    return F


def _state(converted: nn.Module) -> dict[str, Tensor]:
    (feedback,) = (module for module in converted.modules() if isinstance(module, FeedbackWeight))
    return {**dict(feedback.named_parameters()), **dict(feedback.named_buffers())}
