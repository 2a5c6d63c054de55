"""Calling what computes a weight a second time, for `F`, as if the first call had not been.

The same random numbers are drawn, the generator goes on from where the first call left it, and what the
first call wrote to (running statistics, an observer's range) is written to in a copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfa_convert.feedback.calls import argument, tensors_of
from pfa_convert.feedback.functions import draws


def repeatable(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Callable[..., Any]:
    """Return what repeats a call that is about to be made, with other weights: mostly the function itself.

    While PyTorch compiles a function or records a CUDA graph, no generator can be asked; then a function
    that draws is returned as it is.
    """
    if func in _WRITTEN:
        return _writing_copies(func, args, kwargs)
    if not draws(func):
        return func
    return redrawing(func, next(tensors_of(args, kwargs)).device, kwargs.get("generator"))


def repeatable_module(module: nn.Module, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """Return what repeats a call of a module that is about to be made, as `repeatable` does a function's."""
    if type(module).__module__.startswith("torch.nn.utils."):  # PyTorch's own parametrizations draw nothing
        return module
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    again: Callable[..., Any] = module
    if buffers:
        again = lambda *args: torch.func.functional_call(module, buffers, args)  # noqa: E731
    return redrawing(again, tensors[0].device)


def redrawing(
    func: Callable[..., Any], device: torch.device, given: torch.Generator | None = None
) -> Callable[..., Any]:
    """Return a function that draws what it would draw now, from the device's generator or a given one."""
    found = _generator(device) if given is None else given
    if found is None:
        return func
    generator, before = found, found.get_state()

    @functools.wraps(func)
    def redrawing(*args: Any, **kwargs: Any) -> Any:
        after = generator.get_state()
        generator.set_state(before)
        try:
            return func(*args, **kwargs)
        finally:
            generator.set_state(after)

    return redrawing


def _generator(device: torch.device) -> torch.Generator | None:
    """Return a device's default generator; None where there is none, or none that can be asked now."""
    if torch.compiler.is_compiling():
        return None
    if device.type == "cpu":
        return torch.default_generator
    recording = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if device.type not in ("cuda", "xpu") or recording:
        return None
    generators: Sequence[torch.Generator] = torch.get_device_module(device.type).default_generators
    return generators[device.index or 0]


def _writing_copies(
    func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Callable[..., Any]:
    written = [(slot, argument(args, kwargs, *slot, None)) for slot in _WRITTEN[func]]
    copies = [(slot, tensor.clone()) for slot, tensor in written if tensor is not None]

    def writing_copies(*args: Any, **kwargs: Any) -> Any:
        arguments = list(args)
        for (position, keyword), copy in copies:
            if position < len(arguments):
                arguments[position] = copy
            else:
                kwargs[keyword] = copy
        return func(*arguments, **kwargs)

    return writing_copies


_STATISTICS = ("running_mean", "running_var")
_RANGE = ("running_min", "running_max", "scale", "zero_point")
_WRITTEN: dict[Any, tuple[tuple[int, str], ...]] = {
    func: tuple(enumerate(names, first))
    for func, first, names in [
        (functional.batch_norm, 1, _STATISTICS),
        (functional.instance_norm, 1, _STATISTICS),
        (torch.batch_norm, 3, _STATISTICS),
        (torch.instance_norm, 3, _STATISTICS),
        (torch.native_batch_norm, 3, _STATISTICS),
        (torch.fused_moving_avg_obs_fake_quant, 3, _RANGE),
        (torch._fused_moving_avg_obs_fq_helper, 3, _RANGE),
    ]
}
"""Where a function that returns a new tensor writes to others: position and keyword."""
