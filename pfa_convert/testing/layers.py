"""Checking one kind of layer: its forward, and every gradient, with feedback weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pfa_convert.alignment import report_of
from pfa_convert.comparison import forward_difference
from pfa_convert.convert import convert, revert
from pfa_convert.errors import UserError
from pfa_convert.feedback.finding import feedback_weights
from pfa_convert.feedback.layers import Layer, layer_of
from pfa_convert.testing.literal import EXACT, relative_error

Reference = Callable[..., Any]
"""`reference(layer, F, *inputs)`: the output by explicit formulas, with `F` by weight name."""


def check_layer(layer: nn.Module, *inputs: Any, reference: Reference | None = None) -> None:
    """Check that a registered kind of layer is right with feedback weights; raise AssertionError otherwise.

    The forward must be the plain layer's to the last bit. In float64, every gradient must be the plain one
    with `F = W`, and with a random `F` that of the reference.

    Args:
        layer: an instance; it is left alone.
        inputs: what its forward takes.
        reference: the output computed another way, by formulas: `reference(layer, F, *inputs)`, where a
            product `x W^T` is `through(functional.linear, x, W, F["weight"])`. It can be left out if the
            output is linear in each input: it is the plain layer with `F` for its weights.

    Raises:
        UserError: if the layer's class is not registered, or the reference is missing.
    """
    kind = layer_of(layer)
    if kind is None:
        raise UserError(f"{type(layer).__name__} has no entry in LAYERS, or a forward of its own")
    _check_report(layer, kind)
    for rule in ("fa", "pfa"):
        difference = forward_difference(copy.deepcopy(layer), convert(layer, rule), *inputs)
        assert difference == 0, f"the forward differs by {difference:.1e} from the plain layer's ({rule})"
    plain, inputs = copy.deepcopy(layer).double(), tuple(_double(argument) for argument in inputs)
    _same(
        _gradients(convert(plain, "bp", options={"strategy": "explicit"}), inputs),
        _gradients(plain, inputs),
        "with F = W",
    )
    converted = convert(plain, "fa")
    own = _gradients(converted, inputs)
    F = {name: feedback.feedback_weight(weight) for name, weight, feedback in feedback_weights(converted)}
    _same(own, _expected(plain, F, inputs, reference), "with a random F")
    for way, again in {"copy": copy.deepcopy(converted), "pickle": _pickled(converted)}.items():
        _same(_gradients(again, inputs), own, f"after a {way}")
    assert type(revert(converted)) is type(layer), "revert leaves another class"


def _check_report(layer: nn.Module, kind: Layer) -> None:
    report = report_of(convert(layer, "fa"))
    named, wanted = [site.weight for site in report.sites], kind.parameters(layer)
    assert sorted(named) == sorted(wanted), f"the sites are {named}, the layer's weights {wanted}"
    for site in report.sites:
        shape = tuple(layer.get_parameter(site.weight).shape)
        assert site.weight_shape == shape, f"the layout of {site.weight} has the shape {site.weight_shape}"


def _expected(
    plain: nn.Module, F: Mapping[str, Tensor], inputs: tuple[Any, ...], reference: Reference | None
) -> dict[str, Tensor]:
    """Return the gradients of the reference; by default, the inputs' are those with `F` as the weights."""
    if reference is not None:
        given = reference
        return _gradients(plain, inputs, lambda layer, *arguments: given(layer, F, *arguments))
    if not _is_linear(plain, inputs):
        raise UserError(
            "the output is not linear in each input, so the error below is not that of a layer with F as "
            "its weights: give check_layer a reference"
        )
    through_F = copy.deepcopy(plain)
    with torch.no_grad():
        for name, feedback_weight in F.items():
            through_F.get_parameter(name).copy_(feedback_weight)
    below = {n: g for n, g in _gradients(through_F, inputs).items() if n.startswith("input ")}
    return _gradients(plain, inputs) | below


def _is_linear(plain: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Say whether `f(3x) - f(2x) = f(2x) - f(x)` for each input, and the same for its other half."""
    for index, argument in enumerate(inputs):
        if not _is_real(argument):
            continue
        other = torch.randn_like(argument)
        steps = [argument, argument + other, argument + 2 * other]
        with torch.no_grad():
            y = [plain(*inputs[:index], step, *inputs[index + 1 :]) for step in steps]
        if not all(isinstance(one, Tensor) for one in y):
            return False
        if (y[2] - 2 * y[1] + y[0]).norm() > 1e-9 * (1 + y[2].norm()):
            return False
    return True


def _gradients(
    layer: nn.Module, inputs: tuple[Any, ...], forward: Callable[..., Any] | None = None
) -> dict[str, Tensor]:
    """Return the gradients of the parameters and of the inputs, for one fixed random error at the output."""
    layer.zero_grad()
    leaves = [i.clone().requires_grad_() if _is_real(i) else i for i in inputs]
    outputs = layer(*leaves) if forward is None else forward(layer, *leaves)
    generator = torch.Generator().manual_seed(1)
    real = [o for o in torch.utils._pytree.tree_leaves(outputs) if _is_real(o) and o.requires_grad]
    errors = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in real]
    torch.autograd.backward(real, errors)
    found = {f"input {index}": leaf.grad for index, leaf in enumerate(leaves) if _is_real(leaf)}
    found |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def _same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], when: str) -> None:
    assert ours.keys() == theirs.keys(), f"{when}, other gradients: {ours.keys() ^ theirs.keys()}"
    for name in theirs:
        error = relative_error(ours[name], theirs[name])
        assert error <= EXACT, f"{when}, the gradient of {name} is off by {error:.1e}, relatively"


def _pickled(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


def _is_real(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()


def _double(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return tuple(_double(entry) for entry in argument)
    return argument.double() if _is_real(argument) else argument
