"""Putting the feedback operation in the place of each call that applies a learned weight.

One of PyTorch's layers gets a class of its own with another forward. A module that applies weights itself
keeps its forward, which runs with those calls redirected. Either way the module tree, its names, its other
methods and its hooks stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pfa_convert.feedback.direct import DirectPathway, OutputErrors, with_output_tap
from pfa_convert.feedback.layers.unrolled import UNROLLED
from pfa_convert.feedback.redirect import run_redirected
from pfa_convert.feedback.weight import FeedbackWeight
from pfa_convert.graph.children import hide_feedback
from pfa_convert.graph.code import hides_from_compilers, methods_that_name
from pfa_convert.graph.layers import own_layer
from pfa_convert.graph.sites import KEPT_ATTRIBUTES, Discovery, feedback_path, joined
from pfa_convert.graph.subclass import change_class, plain_again, with_layer_forward, with_wrapped_method


def rewrite(model: nn.Module, found: Discovery) -> None:
    """Have every module whose weights have feedback states beside them apply those with feedback."""
    for name, weights in found.owners.items():
        inside = [inner.removeprefix(f"{name}.") for inner in sorted(found.entered[name])]
        rewrite_owner(model.get_submodule(name), weights, inside, compiled=name not in found.writers)
    holders = []
    for site in found.sites.values():
        path, feedback = feedback_path(site.weight)
        holder = model.get_submodule(path)
        if hasattr(holder, feedback):
            rewrite_layer(model.get_submodule(site.owner))
            holders += [holder] if own_layer(holder) is None else []
    hide_feedback(holders, model)
    tap_output(model)


def rewrite_layer(layer: nn.Module) -> None:
    """Give one of PyTorch's layers the forward that uses its feedback weight."""
    kind = own_layer(layer)
    if kind is not None and not hasattr(type(layer), "plain_class"):
        change_class(layer, with_layer_forward, kind.kind)


def unroll_recurrent(model: nn.Module) -> None:
    """Ask the fused recurrent layers to run step by step; `restore` undoes it."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            setattr(module, UNROLLED, True)


def rewrite_owner(
    owner: nn.Module, weights: Iterable[str], inside: Sequence[str] = (), compiled: bool = True
) -> None:
    """Have a module's own methods redirect the calls that apply these of its weights, named by their paths.

    Its forward does so, and every method whose code names one of the weights; also in the forwards of the
    modules `inside` that it hands weights to. It is not `compiled` where a compiler would hide what it does.
    """
    places = [(weight, joined(*feedback_path(weight))) for weight in sorted(weights)]
    kept = tuple(
        (tuple(weight.split(".")), tuple(feedback.split(".")))
        for weight, feedback in places
        if _has(owner, feedback)
    )
    if not kept:
        return
    owner.redirected_weights = kept  # type: ignore[assignment]
    owner.redirected_inside = tuple(tuple(path.split(".")) for path in inside)  # type: ignore[assignment]
    run = [owner, *map(owner.get_submodule, inside)]
    hidden = not compiled or any(map(hides_from_compilers, run))
    wrap = redirecting_uncompiled if hidden else redirecting
    for name in methods_that_name(owner, {weight[0] for weight, _ in kept}):
        change_class(owner, with_wrapped_method, name, wrap)


@cache
def redirecting(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method whose calls that apply one of the owner's weights are redirected."""

    @functools.wraps(method)
    def redirected(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run_redirected(method, list(_weights_of(self)), _constants_of(self), self, *args, **kwargs)

    return redirected


@cache
def redirecting_uncompiled(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same, which `torch.compile` leaves as it is: it hides what some functions are given."""
    uncompiled: Callable[..., Any] = torch.compiler.disable(redirecting(method))
    return uncompiled


def _weights_of(owner: Any) -> Iterator[tuple[nn.Parameter, FeedbackWeight]]:
    for weight, feedback in owner.redirected_weights:
        yield _follow(owner, weight), _follow(owner, feedback)


def _constants_of(owner: Any) -> list[Tensor]:
    """Return the buffers that code which has an owner's weights can be expected to read.

    They are those of the owner and of the modules that it hands weights to, and of their children. One that
    an earlier call has left in its place, with a history, is a state.
    """
    constants: list[Tensor] = []
    for module in (owner, *(_follow(owner, path) for path in owner.redirected_inside)):
        for holder in (module, *module._modules.values()):
            if holder is not None:
                constants += [buffer for buffer in holder._buffers.values() if buffer is not None]
    return [buffer for buffer in constants if not buffer.requires_grad]


def _follow(owner: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        owner = getattr(owner, part)
    return owner


def _has(owner: nn.Module, path: str) -> bool:
    holder, _, name = path.rpartition(".")
    return name in owner.get_submodule(holder)._modules


def tap_output(model: nn.Module) -> None:
    """Let a model's output hand its error to the sites with direct feedback, if there are any."""
    direct = [
        (feedback, feedback.pathway)
        for feedback in model.modules()
        if isinstance(feedback, FeedbackWeight) and isinstance(feedback.pathway, DirectPathway)
    ]
    if not direct:
        return
    errors = OutputErrors()
    for feedback, pathway in direct:
        feedback.pathway = pathway.sharing(errors)
    model.output_errors = errors  # type: ignore[assignment]
    change_class(model, with_wrapped_method, "forward", with_output_tap)


def restore(module: nn.Module) -> None:
    """Undo the rewrite of one module: its class, its forward, its feedback state."""
    plain_again(module)
    for name in KEPT_ATTRIBUTES:
        module.__dict__.pop(name, None)
    for name in [n for n, child in module._modules.items() if isinstance(child, FeedbackWeight)]:
        del module._modules[name]
