"""PyTorch's own layers that apply a learned weight, and their forwards with a feedback weight."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from pfa_convert.feedback.functional import convolution, linear, transposed_convolution
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.redirect import run_redirected
from pfa_convert.feedback.weight import FeedbackWeight
from pfa_convert.graph.parametrized import parametrized_weight, raw_weight


def stock_weights(module: nn.Module) -> list[str]:
    """Return the names of the weights that one of PyTorch's layers applies, relative to the layer."""
    if not isinstance(module, nn.MultiheadAttention):
        return [raw_weight(module) if is_parametrized(module, "weight") else "weight"]
    packed = module._qkv_same_embed_dim
    projections = ["in_proj_weight"] if packed else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    return [*projections, "out_proj.weight"]


def stock_layer(module: nn.Module) -> type[nn.Module] | None:
    """Return the class of PyTorch whose forward the module runs, if it is one that applies a weight."""
    for layer in STOCK_FORWARDS:
        if isinstance(module, layer) and type(module).forward is layer.forward:
            return layer
    return None


def inherited_layer(module: nn.Module) -> type[nn.Module] | None:
    """Return the layer of PyTorch that a module's class extends with a forward of its own."""
    return next((layer for layer in STOCK_FORWARDS if isinstance(module, layer)), None)


def feedback_forward(layer: nn.Module) -> Callable[..., Any]:
    """Return the forward of one of PyTorch's layers with a feedback weight."""
    forward = STOCK_FORWARDS[stock_layer(layer)]  # type: ignore[index]
    if forward is forward_with_redirection:
        return forward
    return (_with_parametrized_weight if is_parametrized(layer, "weight") else _with_own_weight)(forward)


@cache
def _with_own_weight(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def with_own_weight(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return forward(self, self.weight, self.feedback_of_weight, *args, **kwargs)

    return with_own_weight


@cache
def _with_parametrized_weight(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def with_parametrized_weight(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        weight, feedback = parametrized_weight(self)
        return forward(self, weight, feedback, *args, **kwargs)

    return with_parametrized_weight


def layout_of(module: nn.Module, weight_name: str = "weight") -> WeightLayout:
    """Return the layout of a weight of one of PyTorch's layers."""
    weight: Any = operator.attrgetter(weight_name)(module)
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    return WeightLayout(tuple(weight.shape), int(getattr(module, "groups", 1)), transposed)


def _linear(self: Any, weight: Tensor, feedback: Any, input: Tensor) -> Tensor:
    return linear(input, weight, self.bias, feedback=feedback)


def _convolution(self: Any, weight: Tensor, feedback: Any, input: Tensor) -> Tensor:
    padding = self.padding
    if self.padding_mode != "zeros":
        input = functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        padding = 0
    return convolution(
        input,
        weight,
        self.bias,
        self.stride,
        padding,
        self.dilation,
        self.groups,
        feedback=feedback,
    )


def _transposed_convolution(
    self: Any, weight: Tensor, feedback: Any, input: Tensor, output_size: list[int] | None = None
) -> Tensor:
    dimensions = len(self.kernel_size)
    output_padding = self._output_padding(
        input, output_size, self.stride, self.padding, self.kernel_size, dimensions, self.dilation
    )
    return transposed_convolution(
        input,
        weight,
        self.bias,
        self.stride,
        self.padding,
        output_padding,
        self.groups,
        self.dilation,
        feedback=feedback,
    )


def forward_with_redirection(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a module's plain forward; its own uses of its and its children's weights get their feedback."""
    pairs = [
        (holder.get_parameter(feedback.parameter_name), feedback)
        for holder in (self, *self.children())
        for feedback in holder.children()
        if isinstance(feedback, FeedbackWeight)
    ]
    return run_redirected(type(self).plain_class.forward, pairs, [], self, *args, **kwargs)


STOCK_FORWARDS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _transposed_convolution,
    nn.ConvTranspose2d: _transposed_convolution,
    nn.ConvTranspose3d: _transposed_convolution,
    nn.MultiheadAttention: forward_with_redirection,
}
