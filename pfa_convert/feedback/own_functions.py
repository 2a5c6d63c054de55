"""Autograd functions of the user's own between a weight and its product, as in straight-through quantisation.

PyTorch tells no mode of `Function.apply(W)`. What the function's `forward` calls is seen, without gradients:
from there its frame is in sight, which has the arguments. The result is known by its `grad_fn`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from pfa_convert.feedback.calls import tensors_of
from pfa_convert.feedback.repeat import redrawing


class OwnCall(NamedTuple):
    """A call of an autograd function: what makes one of its results again, and the call's arguments."""

    again: Callable[..., Any]
    args: tuple[Any, ...]


class _Running(NamedTuple):
    """A `forward` that was seen to run; `ctx` is None where the function has a `setup_context`."""

    frame: FrameType
    ctx: Any
    args: tuple[Any, ...]
    call: Callable[..., Any]

    def made(self, node: Any) -> bool:
        """Say whether this is the call that a node of autograd's is of."""
        if self.ctx is not None:
            return self.ctx is node
        forward: Any = inspect.unwrap(node._forward_cls.forward)
        edges = [edge for edge, _ in node.next_functions]
        same = getattr(forward, "__code__", None) is self.frame.f_code
        return same and edges == [*map(_edge, tensors_of(self.args, {}))]


class OwnFunctions:
    """The autograd functions that were called while a forward was followed."""

    def __init__(self) -> None:
        self._running: list[_Running] = []

    def notice(self) -> None:
        """Note the autograd functions that the caller is called by."""
        if torch.compiler.is_compiling():
            return
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            known = any(one.frame is frame for one in self._running)
            if frame.f_code.co_name == "forward" and not known and not _is_ours(frame):
                ctx, args = _arguments(frame)
                tensor = next(tensors_of(args, {}), None)
                if tensor is not None and not isinstance(args[0], nn.Module):
                    self._running.append(_Running(frame, ctx, args, redrawing(_apply, tensor.device)))
            frame = frame.f_back

    def call_that_made(self, tensor: Any) -> OwnCall | None:
        """Return the call whose result a tensor is, if it is one's."""
        if not self._running or not isinstance(tensor, Tensor):
            return None
        node: Any = tensor.grad_fn
        if not hasattr(node, "_forward_cls"):
            return None
        for one in self._running:
            if one.made(node):
                return OwnCall(partial(one.call, node._forward_cls, tensor.output_nr), one.args)
        return None

    def forget(self) -> None:
        """Let go of all frames, and of the tensors in them."""
        self._running.clear()


def _is_ours(frame: FrameType) -> bool:
    """Say whether a function is one of this package's, as the tap of a weight by a redirection within."""
    return str(frame.f_globals.get("__name__")).startswith("pfa_convert.feedback.")


def _arguments(frame: FrameType) -> tuple[Any, tuple[Any, ...]]:
    """Return `ctx`, if there is one, and what else a function was given that has called nothing yet."""
    code = frame.f_code
    args = [frame.f_locals[name] for name in code.co_varnames[: code.co_argcount] if name in frame.f_locals]
    if code.co_flags & inspect.CO_VARARGS:
        args += frame.f_locals[code.co_varnames[code.co_argcount + code.co_kwonlyargcount]]
    if args and isinstance(args[0], BackwardCFunction):
        return args[0], tuple(args[1:])
    return None, tuple(args)


def _edge(tensor: Tensor) -> Any:
    """Return the node that a tensor's error goes to; None if it has no gradient."""
    return torch.autograd.graph.get_gradient_edge(tensor).node if tensor.requires_grad else None


def _apply(function: Any, result: int, *args: Any) -> Any:
    made = function.apply(*args)
    return made[result] if isinstance(made, tuple) else made
