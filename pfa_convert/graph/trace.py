"""torch.fx tracing of one module's own forward, with its children as leaves.

A model is traced module by module, from the root down, each with the arguments that its parent gives
it. So a module that cannot be traced costs only itself: the modules inside it are traced all the same.
What is traced is a throw-away stand-in, and the graph is only read: it says what is applied where.
"""

from __future__ import annotations

import inspect
import linecache
import operator
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace as symbolic_trace
from torch.fx.proxy import ParameterProxy, TraceError
from torch.nn.parameter import UninitializedParameter

from pfa_convert.errors import one_line
from pfa_convert.feedback.redirect import inside_reentrant_checkpointing
from pfa_convert.graph.signatures import TENSOR, Call, method_of, parameters_of
from pfa_convert.graph.sites import of_torch
from pfa_convert.graph.standin import StandIn, holds_traced
from pfa_convert.graph.traced_value import SIZE, TracedValue, is_one_size, sizes_of
from pfa_convert.graph.ways import MOST_WAYS, VALUES, Choices, Traced, follow_ways

NEXT_CALLS = 3
"""So many calls are traced after one that leaves something in an attribute: a state, or those before it."""

_TRACING = (str(Path(fx.__file__).parent), str(Path(__file__).parent))


@dataclass(frozen=True)
class Trace:
    """The graphs of a forward, one for each way through it; `failure` says why they may not be all of it."""

    graphs: tuple[fx.Graph, ...]
    failure: str | None = None


def trace_method(stand_in: StandIn, module: nn.Module, call: Call) -> Trace:
    """Return the graphs of a module's own method when it is called like that.

    What cannot be followed for sizes of any number may be for one number, as in `torch.arange(length)`.
    Neither the module nor anything of PyTorch's is changed for a moment.
    """
    ways, all_ways = _ways(stand_in, module, call, None)
    graphs = tuple(way.graph for way in ways)
    # The first way has an error only where all have one.
    errors = [way.error for way in ways if not way.whole] + [ways[0].error]
    error = next((error for error in errors if error is not None), None)
    if error is None and all_ways:
        return Trace(graphs)
    failure = VALUES if error is None else _reason(error)
    if of_torch(module):
        return Trace(graphs, failure)
    for_a_size, _ = _ways(stand_in, module, call, SIZE)
    return Trace((*graphs, *(way.graph for way in for_a_size)), failure)


def _ways(stand_in: StandIn, module: nn.Module, call: Call, size: int | None) -> tuple[list[Traced], bool]:
    most = 1 if of_torch(module) else MOST_WAYS
    return follow_ways(lambda choices: _trace(stand_in, module, call, choices, size), most)


def _trace(stand_in: StandIn, module: nn.Module, call: Call, choices: Choices, size: int | None) -> Traced:
    tracer = _OwnForward(stand_in.renew(module), call, choices, size)
    tracing, error = stand_in.tracing, None
    tracing.call, tracing.read = tracer.call_child, tracer.read
    try:
        # What the model warns of, its runs will: where warnings are errors, they would end the trace.
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tracer.run(method_of(module, call.method))
    except Exception as raised:
        error = raised
    finally:
        tracing.call = tracing.read = None
    return Traced(tracer.graph, tuple(choices.taken), error)


class _OwnForward(fx.Tracer):
    """Traces a module's own operations; every child module stays one node."""

    def __init__(self, root: nn.Module, call: Call, choices: Choices, size: int | None) -> None:
        super().__init__(autowrap_functions=_leaf_functions(), param_shapes_constant=True)
        self.root = root
        self.graph = fx.Graph()
        self.tensor_attrs: dict[Any, str] = {}
        self.size = size
        self._call = call
        self._choices = choices
        root.training = call.training
        modules = dict(root.named_modules(remove_duplicate=False))
        self._modules_by_id = {id(module): name for name, module in reversed(list(modules.items()))}
        named = [*root.named_buffers(remove_duplicate=False), *root.named_parameters(remove_duplicate=False)]
        self._tensors_by_id = {id(tensor): name for name, tensor in reversed(named)}
        self._read: dict[str, fx.Proxy] = {}
        self._number = 0

    def run(self, method: Callable[..., Any]) -> None:
        """Trace a call of a method, and those after it."""
        with symbolic_trace._new_patcher() as patcher:
            # Functions that a user or timm keeps out of tracing become nodes, where they are given a proxy.
            symbolic_trace._patch_wrapped_functions(patcher)
            searched = [getattr(inspect.unwrap(method), "__globals__", {}), *_searched()]
            for namespace in searched:
                symbolic_trace._autowrap_check(patcher, namespace, self._autowrap_function_ids)
            args, kwargs = self._arguments(parameters_of(method))
            result = method(self.root, *args, **kwargs)
            result = self._next_calls(method, result)
        self.create_node("output", "output", (self.create_arg(result),), {})

    def _next_calls(self, method: Callable[..., Any], result: Any) -> Any:
        """Trace the next calls where one leaves something for them; return the result of the last one."""
        for number in range(1, NEXT_CALLS + 1):
            if not any(map(holds_traced, self.root.modules())):
                break
            self._number = number
            self._choices.repeat()
            try:
                args, kwargs = self._arguments(parameters_of(method))
                result = method(self.root, *args, **kwargs)
            except Exception:  # the first call could be followed
                self._number = number - 1
                break
        return result

    def _arguments(self, parameters: tuple[inspect.Parameter, ...]) -> tuple[list[Any], dict[str, Any]]:
        """Return a placeholder for each traced argument, and the values of the others."""
        options = iter(self._call.options)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.kind is parameter.VAR_POSITIONAL:
                more = self._call.more or not args
                args += [self.create_proxy("placeholder", f"more_{n}", (), {}) for n in range(more)]
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            value = TENSOR if parameter.default is inspect.Parameter.empty else next(options)
            if value is TENSOR:
                value = self.create_proxy("placeholder", parameter.name, (), {})
            if parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return args, kwargs

    def call_child(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the node of a call of a module."""
        if id(module) not in self._modules_by_id:
            raise TraceError(f"it calls a {type(module).__name__} that is none of its children")
        return self.create_proxy("call_module", self._modules_by_id[id(module)], args, kwargs)

    def read(self, module: nn.Module, name: str, value: Tensor) -> Any:
        """Return the node that reads a Parameter or a buffer."""
        path = self._tensors_by_id.get(id(value))
        if path is None:
            return value
        if path not in self._read:
            factory = None
            if isinstance(value, nn.Parameter) and not isinstance(value, UninitializedParameter):

                def factory(node: fx.Node) -> fx.Proxy:
                    return ParameterProxy(self, node, path, value)

            self._read[path] = self.create_proxy("get_attr", path, (), {}, proxy_factory_fn=factory)
        return self._read[path]

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Say what a condition on a traced value is taken for on this way."""
        return self._choices(_asking(), obj.node.target is operator.eq)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Return what a forward goes through where it goes through all the sizes of a value."""
        sizes = sizes_of(obj.node)
        return super().iter(obj) if sizes is None else (obj[index] for index in range(sizes))  # type: ignore[index]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for a node's value while tracing."""
        return TracedValue(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> Any:
        """Return what stands for a new node; a number for a size, where one was given."""
        if self.size is not None and is_one_size(kind, target, args):
            return self.size
        return super().create_proxy(kind, target, args, kwargs, *more, **named)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Return a node that remembers whether gradients are recorded where it stands, and in which call."""
        node = super().create_node(*args, **kwargs)
        if any(entry.graph is not self.graph for entry in node.all_input_nodes):
            self.graph.erase_node(node)
            raise TraceError(
                "it meets what an earlier call left where no other is told: outside of all modules"
            )
        plainly = torch.is_grad_enabled() or inside_reentrant_checkpointing()
        node.meta["without_gradients"] = not plainly
        node.meta["call"] = self._number if self._call.training else 0  # weights are kept for evaluation
        return node

    def create_arg(self, a: Any) -> Any:
        """Return a node for a tensor or a module of the root, whichever way it was come by."""
        if isinstance(a, Tensor) and id(a) in self._tensors_by_id:
            return self.create_node("get_attr", self._tensors_by_id[id(a)], (), {})
        if isinstance(a, nn.Module) and id(a) in self._modules_by_id:
            return self.create_node("get_attr", self._modules_by_id[id(a)], (), {})
        if isinstance(a, Tensor) and a._base is not None:
            return super().create_arg(a._base)  # what is written into a view is written into this
        return super().create_arg(a)


def _asking() -> Any:
    """Return the place in the user's code, or in a library's, that asks for a condition."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_TRACING):
        frame = frame.f_back
    return frame.f_code, frame.f_lasti


def _searched() -> Iterator[dict[str, Any]]:
    """Yield the namespaces of functions that others call, in which those that pad are kept out of tracing."""
    if padding := sys.modules.get("timm.layers.conv2d_same"):
        yield padding.__dict__


def _leaf_functions() -> tuple[Callable[..., Any], ...]:
    """Return the functions that timm keeps out of tracing, and those that look at shapes.

    A library that was not imported has none: no model's forward can call them.
    """
    return _leaf_functions_of("timm.layers" in sys.modules, "torchvision.ops" in sys.modules)


@cache
def _leaf_functions_of(timm: bool, torchvision: bool) -> tuple[Callable[..., Any], ...]:
    found: list[Callable[..., Any]] = []
    if timm:
        from timm.layers import get_notrace_functions
        from timm.layers.padding import pad_same

        found += [*(f for f in get_notrace_functions() if callable(f)), pad_same]
    if torchvision:
        from torchvision.ops import deform_conv2d

        found.append(deform_conv2d)
    return tuple(found)


def _reason(error: Exception) -> str:
    """Say why a forward cannot be followed, and where: the innermost line of the user's own code."""
    if isinstance(error, TraceError) and "none of its children" not in str(error):
        reason = VALUES
    elif isinstance(error, TraceError):
        reason = str(error)
    else:
        reason = f"torch.fx: {type(error).__name__}: {one_line(error, 120)}"
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(own)]
    if not users:
        return reason
    last = users[-1]
    line = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
    return f"{reason} ({Path(last.filename).name}:{last.lineno}: {line[:80]})"


def is_plain_function(call: Any) -> bool:
    """Say whether a call is of a Python function that is not PyTorch's."""
    return isinstance(call, FunctionType) and not call.__module__.startswith("torch.")
