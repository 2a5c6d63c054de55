"""What PyTorch's functions do to a weight that others are computed from: shape it, scale it, look it up."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pfa_convert.feedback.calls import argument
from pfa_convert.feedback.lookup import ALONG_A_DIMENSION, NO_AXIS, axes_along, axes_of_item
from pfa_convert.feedback.products import product_of


def is_lookup(func: Any) -> bool:
    """Say whether a function takes rows of a table."""
    return plain_name(func) in _LOOKUPS


def is_view(func: Any) -> bool:
    """Say whether what a function returns shares its memory with what it is given, or can."""
    return plain_name(func) in _VIEWS


def makes_new_values(func: Any) -> bool:
    """Say whether a function takes no more than the shape from a tensor."""
    return plain_name(func) in _NEW_VALUES


def takes_values_of_first(func: Any) -> bool:
    """Say whether a function takes the values of its first tensor, and of another its shape or kind alone."""
    return plain_name(func) in _OF_FIRST


def multiplies(func: Any) -> bool:
    """Say whether a function is an elementwise product or quotient."""
    return plain_name(func) in _MULTIPLYING


def drops_elements(func: Any) -> bool:
    """Say whether a function sets random elements to zero, and scales the others."""
    return plain_name(func) in _DROPPING


def changes_in_place(func: Any) -> bool:
    """Say whether a function changes the tensor that it is given first."""
    # A compiler knows no number of some of PyTorch's functions, to find them by.
    return func in (_METHODS_IN_PLACE if torch.compiler.is_compiling() else _IN_PLACE)


def draws(func: Any) -> bool:
    """Say whether a function draws random numbers."""
    return plain_name(func) in _DRAWING


def is_elementwise(func: Any) -> bool:
    """Say whether a function computes each element from those at the same place."""
    return plain_name(func) in _ELEMENTWISE


def keeps_mixtures(func: Any) -> bool:
    """Say whether what a function makes of a mixture of weights is still one."""
    return plain_name(func) in _SHAPING or is_elementwise(func)


def those_that_count(func: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Return which of the tensors that make up a weight are weights themselves, by dimensions and elements.

    Where they are multiplied as matrices, added or put side by side, all of two dimensions or more are. In
    anything else, `g * V / |V|`, those smaller than the largest are its scale.
    """
    every = range(len(sizes))
    if product_of(func) is not None or plain_name(func) in _ADDING:
        kept = [index for index in every if sizes[index][0] > 1]
    else:
        kept = [index for index in every if sizes[index][1] == max(elements for _, elements in sizes)]
    return kept or list(every)


def axes_after(
    name: str,
    arguments: Sequence[Any],
    kwargs: dict[str, Any],
    axes: tuple[int, ...] | None,
    dimensions: int | None = None,
) -> tuple[int, ...] | None:
    """Return the order of dimensions after a function, from that before; None where it cannot be said."""
    if axes is None:
        return None
    size = len(axes)
    if name in ("t", "T", "mT", "H", "mH", "adjoint") and size > 1:
        return (*axes[:-2], axes[-1], axes[-2])
    if name in ("transpose", "swapaxes", "swapdims"):
        first, second = [*arguments, *kwargs.values()][:2]
        if not isinstance(first, int) or not isinstance(second, int):
            return None
        swapped = list(axes)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        return tuple(swapped)
    if name == "permute":
        order = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else arguments
        known = len(order) == size and all(isinstance(d, int) for d in order)
        return tuple(axes[d] for d in order) if known else None
    if name == "getitem":
        return axes_of_item(arguments[0], axes)
    if name in ALONG_A_DIMENSION:
        return axes_along(argument(arguments, kwargs, 0, "dim", None), axes)
    if name == "stack" and argument(arguments, kwargs, 0, "dim", 0) == 0:
        return (NO_AXIS, *axes)
    if name in _RESHAPING or (dimensions is not None and dimensions != size):
        return None
    return axes


def plain_name(func: Any) -> str:
    """Return the name of a function of PyTorch's, or of a tensor's property, without underscores."""
    return _NAMES.get(func, "")


_RESHAPING = frozenset(
    [
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "expand",
        "unsqueeze",
        "squeeze",
        "repeat",
        "reshape_as",
        "view_as",
        "expand_as",
        "movedim",
        "moveaxis",
        "stack",
    ]
)
_VIEWS = (_RESHAPING - {"repeat", "stack"}) | frozenset(
    [
        "t",
        "T",
        "mT",
        "H",
        "mH",
        "adjoint",
        "transpose",
        "swapaxes",
        "swapdims",
        "permute",
        "getitem",
        "split",
        "chunk",
        "unbind",
        "narrow",
        "select",
    ]
)
_SHAPING = (
    _VIEWS
    | _RESHAPING
    | frozenset(["contiguous", "to", "type_as", "float", "half", "bfloat16", "double", "clone", "cat"])
)
_OF_FIRST = frozenset(["to", "type_as", "view_as", "reshape_as", "expand_as"])
_ELEMENTWISE = frozenset(
    [
        "mul",
        "rmul",
        "imul",
        "div",
        "truediv",
        "itruediv",
        "add",
        "radd",
        "iadd",
        "sub",
        "rsub",
        "isub",
        "neg",
        "where",
        "masked_fill",
        "dropout",
    ]
)
_MULTIPLYING = frozenset(["mul", "rmul", "imul", "div", "truediv", "itruediv"])
_DROPPING = frozenset(["dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"])
_DRAWING = _DROPPING | frozenset(
    [
        "alpha_dropout",
        "feature_alpha_dropout",
        "native_dropout",
        "gumbel_softmax",
        "rrelu",
        "rrelu_with_noise",
        "bernoulli",
        "binomial",
        "poisson",
        "multinomial",
        "normal",
        "log_normal",
        "uniform",
        "exponential",
        "geometric",
        "cauchy",
        "random",
        "_standard_gamma",
        "_sample_dirichlet",
        "fractional_max_pool2d",
        "fractional_max_pool3d",
        "scaled_dot_product_attention",
    ]
)
_NEW_VALUES = frozenset(
    f"{made}{how}"
    for made, how in [
        *((made, "_like") for made in ("zeros", "ones", "full", "empty", "rand", "randn", "randint")),
        *((f"new_{made}", "") for made in ("zeros", "ones", "full", "empty", "tensor")),
    ]
)
_WRITING = frozenset(
    ["setitem", "copy", "index_copy", "index_add", "index_put", "scatter", "scatter_add", "masked_scatter"]
)
_ADDING = _WRITING | frozenset(["add", "radd", "iadd", "sub", "rsub", "isub", "cat", "stack", "where"])
_LOOKUPS = frozenset(["getitem", "index_select", "embedding", "gather", "take", "take_along_dim", "index"])


def _names() -> dict[Any, str]:
    """Return the names of the functions that are told apart; a compiler knows functions, not names."""
    names: dict[Any, str] = {}
    for name in _SHAPING | _ELEMENTWISE | _ADDING | _DRAWING | _NEW_VALUES | _LOOKUPS | _OTHERS:
        for home in (torch, functional, operator, Tensor):
            for spelled in (name, f"__{name}__", f"{name}_"):
                found = getattr(home, spelled, None)
                if not callable(found):
                    found = getattr(found, "__get__", None)
                if found is not None:
                    names[found] = name
    return names


_OTHERS = frozenset(
    [
        "T",
        "mT",
        "H",
        "mH",
        "data",
        "real",
        "shape",
        "size",
        "dim",
        "numel",
        "dtype",
        "device",
        "ndim",
        "requires_grad",
        "sum",
        "mean",
    ]
)
_NAMES = _names()

_OF_AUTOGRAD = frozenset(["requires_grad_", "retain_grad_", "share_memory_", "detach_", "resize_", "set_"])
_OPERATORS_IN_PLACE = frozenset(
    f"__{name}__" for name in ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")
)


def _in_place(home: Any) -> frozenset[Any]:
    """Return the functions in a class or a module that change what they are given, by their names."""
    named = [name for name in dir(home) if name.endswith("_") and not name.endswith("__")]
    functions = [getattr(home, name) for name in named if name not in _OF_AUTOGRAD]
    operators = [getattr(home, name) for name in _OPERATORS_IN_PLACE if hasattr(home, name)]
    return frozenset(function for function in functions + operators if callable(function))


_METHODS_IN_PLACE = _in_place(Tensor)
_IN_PLACE = _METHODS_IN_PLACE.union(*map(_in_place, (torch, functional, operator)))
