"""What the source of a function that cannot be traced says: whether it applies or hands on a weight."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from types import FunctionType

from pfa_convert.graph.code import PRODUCT_NAMES


@cache
def applies_argument(function: FunctionType, name: str) -> bool:
    """Say whether a product in a function's source has the argument as an operand.

    It is followed through assignments, rows, views and multiples of it (`W = table[index]`, `W.t()`, `2 * W`)
    and into the functions that it is given to, but not through sums: those are activations.
    """
    tree = _source_tree(function)
    if tree is None:
        return True  # nothing is known, so nothing is ruled out
    return any(_applies(node, function, derived) for node, derived in _in_order(tree, {name}))


@cache
def hands_on(function: FunctionType) -> frozenset[tuple[str, str]]:
    """Return each attribute of a method's `self` that it gives to one it calls: `(child, weight)`.

    That is what `self.child(x, self.weight)` says, and `self.child.deeper(w=self.weight)`.
    """
    tree = _source_tree(function)
    if tree is None:
        return frozenset()
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return frozenset(
        (child, weight)
        for call in calls
        for given in [*call.args, *(keyword.value for keyword in call.keywords)]
        if (child := _of_self(call.func)) and (weight := _of_self(given))
    )


def _source_tree(function: FunctionType) -> ast.Module | None:
    """Return the syntax tree of a function's source; None where there is none to read."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def _of_self(value: ast.AST) -> str:
    """Return the path of attributes of `self` that an expression is, else nothing."""
    path, _, rest = ast.unparse(value).partition(".")
    return rest if path == "self" and rest.replace(".", "_").isidentifier() else ""


def _in_order(tree: ast.AST, derived: set[str]) -> Iterator[tuple[ast.AST, set[str]]]:
    """Yield a function's expressions in order, with the names that stand for the argument there."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.For) and _is_derived(node.iter, derived):
            derived.update(named.id for named in ast.walk(node.target) if isinstance(named, ast.Name))
        yield from _in_order(node, derived)
        yield node, derived
        if isinstance(node, ast.Assign):
            stays = _is_derived(node.value, derived)
            for target in node.targets:
                for named in ast.walk(target):
                    if isinstance(named, ast.Name):
                        (derived.add if stays else derived.discard)(named.id)


def _applies(node: ast.AST, function: FunctionType, derived: set[str]) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        return _is_derived(node.left, derived) or _is_derived(node.right, derived)
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    operands = [*node.args, *(keyword.value for keyword in node.keywords)]
    operands += [entry for operand in operands if isinstance(operand, ast.List) for entry in operand.elts]
    if isinstance(called, ast.Attribute) and called.attr in PRODUCT_NAMES:
        return any(_is_derived(operand, derived) for operand in [called.value, *operands])
    if isinstance(called, ast.Name):
        if called.id in PRODUCT_NAMES:
            return any(_is_derived(operand, derived) for operand in operands)
        inner = function.__globals__.get(called.id)
        if isinstance(inner, FunctionType) and inner is not function and not _of_torch(inner):
            return any(applies_argument(inner, name) for name in _given(inner, node, derived))
    return False


def _given(inner: FunctionType, call: ast.Call, derived: set[str]) -> Iterator[str]:
    """Yield the names of the arguments of a called function that are given what is derived."""
    names = list(inspect.signature(inner).parameters)
    for name, value in zip(names, call.args, strict=False):
        if _is_derived(value, derived):
            yield name
    for keyword in call.keywords:
        if keyword.arg in names and _is_derived(keyword.value, derived):
            yield keyword.arg


def _is_derived(value: ast.AST, derived: set[str]) -> bool:
    """Say whether an expression is the argument, rows or a view of it, or a multiple."""
    if isinstance(value, ast.Name):
        return value.id in derived
    if isinstance(value, ast.Subscript | ast.Attribute | ast.Starred):
        return _is_derived(value.value, derived)
    if isinstance(value, ast.Call):
        source = value.func.value if isinstance(value.func, ast.Attribute) else None
        return (source is not None and _is_derived(source, derived)) or bool(
            value.args and _is_derived(value.args[0], derived)
        )
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult | ast.Div):
        sides = (value.left, value.right)
        return any(_is_derived(side, derived) for side in sides) and any(
            isinstance(side, ast.Constant) for side in sides
        )
    return False


def _of_torch(function: FunctionType) -> bool:
    return function.__module__.startswith("torch.")
