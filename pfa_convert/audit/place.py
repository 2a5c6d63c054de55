"""Where in the program an operation runs: in which module, on which line, inside the feedback pass or not.

It is read from the interpreter's stack, so that a model which nobody audits pays nothing for it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pfa_convert.audit.data import Data, Origins, memory_of
from pfa_convert.feedback.direct import DirectPass
from pfa_convert.feedback.graft import graft
from pfa_convert.feedback.pathway import FeedbackPass
from pfa_convert.feedback.primitive import apply_feedback

FEEDBACK, PLAIN, WITHOUT_GRADIENT, INPUT, TWIN = "feedback", "plain", "no gradient", "input", "twin"
"""How an operation uses a learned operand.

With feedback; as PyTorch does; where no gradient is recorded; as what a layer with feedback is applied to;
and in the feedback pass itself, on the way of the error.
"""

_PASSES = frozenset([FeedbackPass.forward.__code__, DirectPass.forward.__code__])
_OWN = str(Path(__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Place:
    """The module whose code runs an operation, and the file and line of that code."""

    module: str
    line: str


class Stack:
    """The frames of the program when an operation runs, innermost first."""

    def __init__(self) -> None:
        self._frames = list(_outward(sys._getframe(1)))

    def place(self, names: dict[nn.Module, str]) -> Place:
        """Return where the operation runs; `names` are those of the model's modules."""
        line = ""
        for frame in self._frames:
            code = frame.f_code
            if not line and not code.co_filename.startswith((_OWN, _TORCH)):
                line = f"{Path(code.co_filename).name}:{frame.f_lineno}"
            if code.co_argcount and not code.co_filename.startswith(_OWN):
                first = frame.f_locals.get(code.co_varnames[0])
                if isinstance(first, nn.Module) and first in names:
                    return Place(names[first], line or f"{Path(code.co_filename).name}:{frame.f_lineno}")
        return Place("", line)

    def way(self, operand: Tensor, data: Data, origins: Origins) -> str:
        """Return how the operation uses one of its operands, which is learned."""
        for frame in self._frames:
            if frame.f_code in _PASSES:
                return _way_in_pass(frame.f_locals, operand, data, origins)
            if frame.f_code is graft.__code__:
                return _way_in_graft(frame.f_locals, operand, origins)
        if torch.is_grad_enabled():
            return PLAIN
        functions = set(_forwards_of(torch.autograd.Function))
        for frame in self._frames:
            if frame.f_code is apply_feedback.__code__:  # it has feedback where gradients are recorded
                return _way_in_pass(frame.f_locals, operand, data, origins)
            if frame.f_code in functions:
                # An autograd function of the user's, or checkpointing, which runs it again with gradients.
                return PLAIN
        return WITHOUT_GRADIENT

    def in_pass(self) -> bool:
        """Say whether the operation is a layer with feedback, whose outputs are activations."""
        codes = {frame.f_code for frame in self._frames}
        return bool(codes & _PASSES) or apply_feedback.__code__ in codes


def _way_in_pass(local: dict[str, Any], operand: Tensor, data: Data, origins: Origins) -> str:
    """Compare an operand with the weight `W` and the input `x` of a feedback pass."""
    if memory_of(operand) == memory_of(local["W"]) and memory_of(local["x"]) != memory_of(local["W"]):
        return FEEDBACK
    if memory_of(operand) == memory_of(local["x"]):
        return INPUT
    return FEEDBACK if data.parameters <= origins.of(local["W"]).parameters else PLAIN


def _way_in_graft(local: dict[str, Any], operand: Tensor, origins: Origins) -> str:
    """A graft computes the output with the weight, then its twin with the feedback weight in its place."""
    if "output" in local:
        return PLAIN if origins.is_parameter(operand) else TWIN
    through = [memory_of(leaf) for leaf in tree_leaves(local["with_feedback"]) if isinstance(leaf, Tensor)]
    return PLAIN if memory_of(operand) in through else FEEDBACK


def _forwards_of(function: Any) -> Iterator[CodeType]:
    """Yield the code of all forwards of autograd functions, which run without recording gradients."""
    for kind in function.__subclasses__():
        forward = getattr(vars(kind).get("forward"), "__func__", None)  # a static method
        if isinstance(forward, FunctionType):
            yield inspect.unwrap(forward).__code__
        yield from _forwards_of(kind)


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
