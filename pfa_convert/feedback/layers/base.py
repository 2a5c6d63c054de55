"""What a kind of layer is: which learned weights it applies, their layouts, and its forward with feedback.

A new kind is one function, in a file of this folder, in the user's own code, or in an installed package
that names its module under the entry points `pfa_convert.layers`:

    @LAYERS.register(MyLinear)
    def my_linear(layer, weight, input):
        return linear(input, weight.value, layer.bias, feedback=weight.feedback)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor, nn

from pfa_convert.feedback.given import GivenFeedback
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.parametrized import is_computed, parametrized_weight, raw_weight
from pfa_convert.feedback.weight import FEEDBACK_ATTRIBUTE, FeedbackWeight
from pfa_convert.registry import ClassRegistry


class AppliedWeight(NamedTuple):
    """A learned weight of a layer as it is now, and the feedback weight of its error.

    `feedback` is None where the weight has none: its rule is backpropagation.
    """

    value: Tensor
    feedback: FeedbackWeight | GivenFeedback | None


Forward = Callable[..., Any]
"""`forward(layer, *weights, *args, **kwargs)`: an AppliedWeight for each weight, then the layer's inputs."""


@dataclass(frozen=True)
class Layer:
    """One kind of layer: its class, its forward with feedback weights, and the names and layouts of those."""

    kind: type[nn.Module]
    forward: Forward
    weights: Callable[[Any], Sequence[str]]
    layout: Callable[[Any, Tensor], WeightLayout]
    computed: bool = True
    when: Callable[[Any], bool] = lambda layer: True

    def parameters(self, layer: nn.Module) -> list[str]:
        """Return the paths of the Parameters that a layer applies; of computed weights, the raw ones'.

        A path that leads to no Parameter stands for a weight whose Parameter is not to be found.
        """
        return [_parameter(layer, name) for name in self.weights(layer)]


class Layers(ClassRegistry[Layer]):
    """The kinds of layers by class."""

    def register(
        self,
        *kinds: type[nn.Module],
        weights: Sequence[str] | Callable[[Any], Sequence[str]] = ("weight",),
        layout: Callable[[Any, Tensor], WeightLayout] | None = None,
        computed: bool = True,
        when: Callable[[Any], bool] = lambda layer: True,
    ) -> Callable[[Forward], Forward]:
        """Return a decorator that files a forward for the classes `kinds` and those that inherit from them.

        Args:
            kinds: classes of layers with one forward.
            weights: the names of the learned weights, or a function of the layer that returns them.
            layout: a function of the layer and a weight; by default the weight is `(N_out, N_in/groups, *k)`
                with the layer's attribute `groups`, or one group.
            computed: whether the forward uses the weights that it is given, so that they may be computed
                by torch.nn.utils.parametrize.
            when: says of a layer whether it is to be converted.

        Raises:
            UserError: from the decorator, if a class has another forward already.
        """

        def decorate(forward: Forward) -> Forward:
            named = weights if callable(weights) else _always(tuple(weights))
            for kind in kinds:
                layer = Layer(kind, forward, named, layout or weight_layout, computed, when)
                self._add(kind, layer, forward)
            return forward

        return decorate


LAYERS = Layers("layer", "pfa_convert.feedback.layers", plugins="pfa_convert.layers")


def layer_of(module: nn.Module) -> Layer | None:
    """Return the kind of layer whose forward the module runs, directly or by `super().forward(...)`."""
    cls: Any = getattr(type(module), "plain_class", type(module))
    layer = inherited_layer(module)
    if layer is None or not _runs(cls, layer.kind):  # type: ignore[arg-type]
        return None
    computed = any(is_computed(*held_by(module, name)) for name in layer.weights(module))
    return layer if layer.computed or not computed else None


def inherited_layer(module: nn.Module) -> Layer | None:
    """Return the kind of layer that a module's class extends, whatever its own forward does."""
    layer = LAYERS.nearest(getattr(type(module), "plain_class", type(module)))
    return layer if layer is not None and layer.when(module) else None


@cache
def _runs(cls: type[nn.Module], kind: type[nn.Module]) -> bool:
    """Say whether the forward of `cls` is that of `kind`, or comes to it by `super().forward(...)`."""
    for base in cls.__mro__:
        forward = vars(base).get("forward")
        if forward is kind.forward:
            return True
        if forward is not None and not _calls_super(forward):
            return False
    return False


def _calls_super(method: Any) -> bool:
    """Say whether a method calls `super().forward(...)`: by its compiled code, for to run it takes inputs."""
    code = getattr(method, "__code__", None)
    return code is not None and "__class__" in code.co_freevars and "forward" in code.co_names


def forward_with_feedback(layer: Layer) -> Forward:
    """Return the method that a converted layer runs in the place of `layer.kind.forward`."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not layer.computed:
            _refuse_computed(self, layer)
        weights = [applied_weight(*held_by(self, name)) for name in layer.weights(self)]
        return layer.forward(self, *weights, *args, **kwargs)

    return forward


def _refuse_computed(module: nn.Module, layer: Layer) -> None:
    """Raise RuntimeError where a weight has been parametrized that the forward reads by itself."""
    for name in layer.weights(module):
        if is_computed(*held_by(module, name)):
            raise RuntimeError(
                f"{name} of this {layer.kind.__name__} was parametrized after the conversion and would "
                "lose its feedback weight: revert the model, parametrize, and convert again"
            )


def held_by(layer: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that holds a weight, and the weight's name in it."""
    if "." not in path:
        return layer, path
    holder, _, name = path.rpartition(".")
    return layer.get_submodule(holder), name


def applied_weight(holder: Any, name: str) -> AppliedWeight:
    """Return the weight called `name` of the module that holds it, as it is now, with its feedback weight."""
    feedback = holder._modules.get(FEEDBACK_ATTRIBUTE.format(parameter=name))
    if feedback is not None and is_computed(holder, name):
        return AppliedWeight(*parametrized_weight(holder, name, feedback))
    return AppliedWeight(getattr(holder, name), feedback)


def weight_layout(layer: Any, weight: Tensor) -> WeightLayout:
    """Return the layout of a weight `(N_out, N_in/groups, *k)`."""
    return WeightLayout(tuple(weight.shape), int(getattr(layer, "groups", 1)))


def _parameter(layer: nn.Module, path: str) -> str:
    holder, name = held_by(layer, path)
    return path.removesuffix(name) + (raw_weight(holder, name) if is_computed(holder, name) else name)


def _always(names: tuple[str, ...]) -> Callable[[Any], Sequence[str]]:
    return lambda layer: names
