"""What the code of a function or a class names, where it can be read but not followed.

The names are those of the compiled code, which is there also where the source is not, as in a notebook.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from types import CodeType, FunctionType, ModuleType

from torch import nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from pfa_convert.feedback.products import PRODUCTS
from pfa_convert.graph.sites import CONTAINERS, is_weight, of_torch, plain_class, weight_path


def may_apply_weights(module: nn.Module) -> bool:
    """Say whether the code of the module's class, or a function that it calls, could apply a weight.

    PyTorch's own code could: its recurrent layers apply theirs out of Python's sight.
    """
    if of_torch(module):
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


def weights_it_names(module: nn.Module) -> set[str]:
    """Return the paths of the weights, of modules inside, that code of the module's class could apply.

    A flag that is set later can lead to it. A weight is named where each attribute on its path is, the
    entries of a list aside, by a method with a product in it or by what that calls.
    """
    paths = {path: weight_path(path) for path, p in module.named_parameters() if "." in path and is_weight(p)}
    if not paths or of_torch(module):
        return set()
    named = _names_by_method(plain_class(module))  # type: ignore[arg-type]
    parts = {path: _named_parts(module, weight) for path, weight in paths.items()}
    return {path for path in paths if any(parts[path] <= names for names in named)}


@cache
def _names_by_method(kind: type[nn.Module]) -> list[set[str]]:
    """Return the names that each method of a class comes to in which there is a product."""
    methods = dict(_methods_of(kind))
    named = [
        set(_all_names(method, methods)) for name, method in methods.items() if not name.startswith("__")
    ]
    return [names for names in named if names & PRODUCT_NAMES]


def reads_weight_of(module: nn.Module, path: str) -> bool:
    """Say whether code of the module's class reads `child.weight` in so many words."""
    *_, child, name = ("", *weight_path(path).split("."))
    return any((child, name) in _pairs(method.__code__) for _, method in own_methods(module))


@cache
def _pairs(code: CodeType) -> frozenset[tuple[str, str]]:
    """Return the pairs of attributes, one read of the other, in code and in the functions within it."""
    read = [(i.opname in ("LOAD_ATTR", "LOAD_METHOD"), i.argval) for i in dis.get_instructions(code)]
    pairs = {(a, b) for (first, a), (second, b) in pairwise(read) if first and second}
    inner = [_pairs(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(pairs).union(*inner)


def _named_parts(module: nn.Module, path: str) -> set[str]:
    """Return the attributes that lead to a weight, without the entries of lists of modules."""
    parts: set[str] = set()
    *holders, name = path.split(".")
    holder: nn.Module | None = module
    for part in holders:
        if not isinstance(holder, (*CONTAINERS, nn.Sequential)):
            parts.add(part)
        holder = holder._modules.get(part) if holder is not None else None
    return parts if isinstance(holder, CONTAINERS) else {*parts, name}


def lists_children(module: nn.Module) -> bool:
    """Say whether code of the module's class asks modules for their children."""
    names = {name for _, method in own_methods(module) for name in _names(method.__code__)}
    return not names.isdisjoint(("children", "named_children"))


def hides_from_compilers(module: nn.Module) -> bool:
    """Say whether code of the module's class names a `torch.autograd.Function` or checkpointing.

    `torch.compile` makes one operation of what these are given, in which nothing can be redirected.
    """
    methods = dict(own_methods(module))
    reached = {function for method in methods.values() for function in _reached(method, methods)}
    return any(_hides(value) for function in reached for value in _values_named(function))


def _hides(value: object) -> bool:
    return value is checkpoint or (isinstance(value, type) and issubclass(value, Function))


def _values_named(function: FunctionType) -> Iterator[object]:
    """Yield the global values that a function names, and those in the modules among them."""
    names = _names(function.__code__)
    spaces, searched = [function.__globals__], set[int]()
    while spaces:
        space = spaces.pop()
        searched.add(id(space))
        for value in (space[name] for name in names if name in space):
            yield value
            if isinstance(value, ModuleType) and id(vars(value)) not in searched:
                spaces.append(vars(value))


def _all_names(function: FunctionType, methods: Mapping[str, FunctionType]) -> Iterator[str]:
    """Yield the names in a function's code, and in the functions and those of the methods that it names."""
    for reached in _reached(function, methods):
        yield from _names(reached.__code__)


def _reached(function: FunctionType, methods: Mapping[str, FunctionType]) -> Iterator[FunctionType]:
    """Yield a function, and the functions and those of the methods that its code names, and theirs."""
    seen, stack = {function}, [function]
    while stack:
        current = stack.pop()
        yield current
        for name in _names(current.__code__):
            named = methods.get(name) or current.__globals__.get(name)
            if isinstance(named, FunctionType) and named not in seen and not _of_torch(named):
                seen.add(named)
                stack.append(named)


def _of_torch(function: FunctionType) -> bool:
    return function.__module__.startswith("torch.")


def own_methods(module: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """Yield the methods of the module's class and its bases, without PyTorch's; the one that is called."""
    return _methods_of(plain_class(module))


def _methods_of(kind: type[nn.Module]) -> Iterator[tuple[str, FunctionType]]:
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
    names = set(_all_names(function, {}))
    return not names.isdisjoint(PRODUCT_NAMES) or names >= WRITTEN_OUT


@cache
def _names(code: CodeType) -> tuple[str, ...]:
    """Return the names in a piece of code and in the functions within it, and those of `@` and `*`."""
    names = [*code.co_names]
    for instruction in dis.get_instructions(code):
        # An operator has no name; Python 3.10 has an instruction for it, later ones an argument.
        if instruction.opname.endswith("MATRIX_MULTIPLY") or instruction.argrepr in ("@", "@="):
            names.append("matmul")
        elif instruction.opname.endswith("_MULTIPLY") or instruction.argrepr in ("*", "*="):
            names.append("mul")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names += _names(constant)
    return tuple(names)


PRODUCT_NAMES = frozenset(
    {product.name for product in PRODUCTS.values()} - {"inner", "dot"}  # common names of attributes
) | {"multi_head_attention_forward", "deform_conv2d"}
WRITTEN_OUT = frozenset(["mul", "sum"])
