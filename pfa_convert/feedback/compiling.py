"""What is asked of `torch.compile` by code that runs under a mode of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def whole_or_not_at_all(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a compiler that comes to a function by itself leave it, and all that it calls, as they are.

    Where it follows a caller into the function nothing changes. But what it could not follow to the end it
    would compile in pieces, which begin in the midst of what the function has set up.
    """
    frames: Any = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    return function
