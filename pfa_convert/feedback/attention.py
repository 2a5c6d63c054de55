"""PyTorch's attention function as its single calls, so that each weight that it applies can be seen."""

from __future__ import annotations

from types import FunctionType

from torch.nn import functional

# PyTorch's attention offers itself as a whole to a mode, before it applies any weight. Without that
# question the same code makes its plain calls, which the mode then sees.
attention_of_plain_calls = FunctionType(
    functional.multi_head_attention_forward.__code__,
    {**vars(functional), "has_torch_function": lambda _tensors: False},
    argdefs=functional.multi_head_attention_forward.__defaults__,
)
