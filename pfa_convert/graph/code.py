"""What the code of a function or a class names, where it can be read but not followed.

The names are those of the compiled code, which is there also where the source is not, as in a notebook.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from types import CodeType, FunctionType

from torch import nn

from pfa_convert.feedback.products import PRODUCTS
from pfa_convert.graph.sites import plain_class


def may_apply_weights(module: nn.Module) -> bool:
    """Say whether the code of the module's class, or a function that it calls, could apply a weight.

    PyTorch's own code could: its recurrent layers apply theirs out of Python's sight.
    """
    if plain_class(module).__module__.startswith("torch."):
        return True
    return any(could_apply_weights(method) for _, method in own_methods(module))


def public_methods(module: nn.Module) -> list[str]:
    """Return the names of the methods beside `forward` that a user may call, and that take an input."""
    return [
        name
        for name, method in own_methods(module)
        if not name.startswith("_") and name != "forward" and len(inspect.signature(method).parameters) > 1
    ]


def methods_that_name(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the module's methods, `forward` first, and those whose code names one of the attributes."""
    wanted = set(names)
    naming = [n for n, method in own_methods(module) if wanted & set(_names(method.__code__))]
    return ["forward", *(n for n in naming if n != "forward" and not n.startswith("__"))]


def own_methods(module: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """Yield the methods of the module's class and its bases, without PyTorch's; the one that is called."""
    kind = plain_class(module)
    seen: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch."):
            continue
        for name, member in vars(base).items():
            method = inspect.unwrap(member) if callable(member) else member
            if name not in seen and isinstance(member, FunctionType) and isinstance(method, FunctionType):
                seen.add(name)
                yield name, method


@cache
def could_apply_weights(function: FunctionType) -> bool:
    """Follow the names in a function's code, and in the functions of other modules that it names."""
    seen: set[FunctionType] = {function}
    stack = [function]
    while stack:
        current = stack.pop()
        for name in _names(current.__code__):
            if name in PRODUCT_NAMES:
                return True
            named = current.__globals__.get(name)
            if not isinstance(named, FunctionType) or named.__module__.startswith("torch."):
                continue
            if named not in seen:
                seen.add(named)
                stack.append(named)
    return False


@cache
def _names(code: CodeType) -> tuple[str, ...]:
    """Return the names in a piece of code and in the functions within it; `matmul` where it has an `@`."""
    names = [*code.co_names]
    for instruction in dis.get_instructions(code):
        # An operator has no name; Python 3.10 has an instruction for it, later ones an argument.
        if instruction.opname.endswith("MATRIX_MULTIPLY") or instruction.argrepr in ("@", "@="):
            names.append("matmul")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names += _names(constant)
    return tuple(names)


PRODUCT_NAMES = frozenset(
    {product.name for product in PRODUCTS.values()} - {"inner", "dot"}  # common names of attributes
) | {"multi_head_attention_forward", "deform_conv2d"}
