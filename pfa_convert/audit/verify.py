"""The account of a model: what one run did with every Parameter, as PyTorch's dispatcher saw it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_leaves

from pfa_convert.audit.account import Account, draw_up
from pfa_convert.audit.observer import Observer, Use
from pfa_convert.feedback.weight import FeedbackWeight
from pfa_convert.graph.held import held

MOST_HELD = 10_000
"""So much of what a module's attributes hold is searched for tensors that an earlier run left."""


def verify(model: nn.Module, *inputs: Any, **kwargs: Any) -> Account:
    """Return the account of `model(*inputs, **kwargs)`: what became of every Parameter in this run.

    A TorchDispatchMode follows the Parameters' memory through views, copies, casts and everything that is
    computed from Parameters, buffers and numbers alone. Each operation that combines such data with
    activations is a use. An operation that multiplies the two and sums (`mm`, `bmm`, `convolution`,
    attention, recurrent layers, ...) is a linear use, and either runs in the feedback pass or does not. The
    names of modules and nodes, and what the conversion traced, play no part. Every Parameter of two or more
    dimensions, and every other that a linear use applies, is then exactly one of:

    - `site`: every linear use is in the feedback pass (or the site's rule leaves it alone, as `bp` does);
    - `skipped`: it is no site, and the report names it with a reason;
    - `no linear map`: used otherwise, as an embedding, a norm's gain, a table that is added;
    - `not reached` in this run;
    - `unaccounted`: it has a linear use without feedback that the report does not mention.

    `print(verify(model, x))` shows them; `.balanced` says that none is unaccounted.

    What the check does not see: a product of a learned tensor written as `mul` and `sum` with anything in
    between (directly one after the other it is seen), or as a scale in Fourier space; values that leave
    PyTorch (`.tolist()`); the other branches of a forward. A state that an earlier run left in a buffer or
    an attribute counts as a constant, unless autograd knows what it was computed from. Operations of other
    libraries count as linear uses of all that is learned among their operands. Which operand is the weight
    is only known by where it came from: with a batch of one, a table of the batch's own shape that is added
    or multiplied can pass for a weight: give two examples.

    The model runs once in the mode it is in, with gradients recorded but no backward pass. Its attributes,
    Parameters, buffers, the inputs and the random numbers are put back; what its code changes within lists or
    outside PyTorch is not. It may be on any device; on `meta` no memory is needed, but code that asks for
    values does not run there.

    Examples:
        >>> from pfa_convert import convert
        >>> account = verify(convert(nn.Sequential(nn.Linear(4, 3)), "fa"), torch.randn(2, 4))
        >>> account.balanced
        True
    """
    return _account(model, [_observe(model, model.training, inputs, kwargs)])


def verify_both_modes(model: nn.Module, *inputs: Any, **kwargs: Any) -> Account:
    """Return the account of two runs, one in training and one in evaluation mode; see `verify`."""
    return _account(model, [_observe(model, training, inputs, kwargs) for training in (True, False)])


def uses(model: nn.Module, *inputs: Any, **kwargs: Any) -> tuple[Use, ...]:
    """Return the uses of Parameters in `model(*inputs, **kwargs)`, of any model; see `verify`."""
    return tuple(_observe(model, model.training, inputs, kwargs).uses)


def _account(model: nn.Module, runs: list[Observer]) -> Account:
    used = dict.fromkeys(use for run in runs for use in run.uses)
    read = {name for run in runs for name in run.read}
    return draw_up(model, _parameters(model), used, read)


def _observe(model: nn.Module, training: bool, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Observer:
    """Run the model in a mode, and leave it as it was."""
    parameters = _parameters(model)
    given = [leaf for leaf in tree_leaves((inputs, kwargs)) if isinstance(leaf, Tensor)]
    constants = _constants(model, given)
    kept = [*parameters.values(), *constants, *given]
    observer = Observer(model, parameters, constants, _with_history(model), kept)
    devices = sorted({t.device.index or 0 for t in parameters.values() if t.device.type == "cuda"})
    with (
        _attributes_kept(model),
        torch.random.fork_rng(devices=devices),
        torch.enable_grad(),
        torch.compiler.set_stance("force_eager"),
    ):
        torch.clear_autocast_cache()
        try:
            if training != model.training:
                for module in model.modules():
                    module.training = training
            with observer:
                model(*inputs, **kwargs)
        finally:
            torch.clear_autocast_cache()
            with torch.no_grad():
                observer.put_back()
    return observer


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the Parameters but for those of feedback weights, each by its first name."""
    feedback = [name for name, module in model.named_modules() if isinstance(module, FeedbackWeight)]
    inside = tuple(f"{name}." for name in feedback)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not isinstance(parameter, UninitializedParameter) and not (inside and name.startswith(inside))
    }


def _constants(model: nn.Module, given: list[Tensor]) -> list[Tensor]:
    """Return the buffers, the feedback weights, and the tensors that are plain attributes of a module."""
    found: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, FeedbackWeight):
            found += module.parameters()
        for attributes in (module._buffers, vars(module)):
            containers = [v for v in attributes.values() if isinstance(v, Tensor | list | tuple | dict)]
            leaves = [leaf for leaf in tree_leaves(containers) if isinstance(leaf, Tensor)]
            found += [leaf for leaf in leaves if not isinstance(leaf, nn.Parameter)]
    inputs = {id(tensor) for tensor in given}
    return [tensor for tensor in found if id(tensor) not in inputs]


def _with_history(model: nn.Module) -> list[Tensor]:
    """Return the tensors of which autograd knows how an earlier run, which left them, computed them."""
    values = (value for module in model.modules() for value in held(vars(module).values(), MOST_HELD))
    return [value for value in values if isinstance(value, Tensor) and value.grad_fn is not None]


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module its attributes back: its own, and those in its tables of buffers and modules.

    A ScriptModule's are not in Python's hands.
    """
    tables = ("_parameters", "_buffers", "_modules")
    before = [
        (module, dict(vars(module)), {table: dict(vars(module)[table]) for table in tables})
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for module, attributes, contents in before:
            vars(module).clear()
            vars(module).update(attributes)
            for table, entries in contents.items():
                vars(module)[table].clear()
                vars(module)[table].update(entries)
