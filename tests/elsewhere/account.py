"""Which Parameters one run applies as weights, by what PyTorch's dispatcher sees, without the package.

Every tensor is of one of three kinds: computed from Parameters alone, a constant, or an activation. A matrix
product or a convolution of the first kind with the last applies the Parameters that it was computed from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

FACTORS = {
    "mm": ((0, 1),),
    "bmm": ((0, 1),),
    "mv": ((0, 1),),
    "dot": ((0, 1),),
    "vdot": ((0, 1),),
    "matmul": ((0, 1),),
    "linear": ((0, 1),),
    "addmm": ((1, 2),),
    "_addmm_activation": ((1, 2),),
    "baddbmm": ((1, 2),),
    "addmv": ((1, 2),),
    "addbmm": ((1, 2),),
    "_grouped_mm": ((0, 1),),
    "convolution": ((0, 1),),
    "_convolution": ((0, 1),),
    "convolution_overrideable": ((0, 1),),
    "mkldnn_convolution": ((0, 1),),
    "deform_conv2d": ((0, 1),),
    "_trilinear": ((0, 1), (1, 2)),
    "mkldnn_rnn_layer": ((0, 1), (0, 2)),
    "lstm": ((0, 2),),
    "_sparse_mm": ((0, 1),),
    "_scaled_dot_product_flash_attention_for_cpu": ((0, 1), (0, 2)),
}
"""The operations that sum over products of two arguments' elements, and which arguments those are."""

LOOKUPS = frozenset(
    ["embedding", "_embedding_bag", "_embedding_bag_forward_only", "index", "index_select", "gather"]
)
ACTIVATION = frozenset(["an activation"])
Origin = frozenset[Any]


class Account(TorchDispatchMode):
    """Collects the names of the Parameters, of two or more dimensions, that a run multiplies.

    `applied` are those multiplied with activations; also a layer's weight that is multiplied with a learned
    input, which makes an activation of it. `between` are those of other products of two Parameters. `inputs`
    are the tensors that the run is given. Random numbers and constants are neither learned nor activations.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.layers = set(layer_weights(model))
        self.applied: set[str] = set()
        self.between: set[str] = set()
        self._origins = WeakIdKeyDictionary()
        self._written: dict[int, tuple[Origin, Any]] = {}
        self._dimensions = {name: p.dim() for name, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            self._origins[parameter] = frozenset([name])
        for tensor in _tensors(inputs):
            self._origins[tensor] = ACTIVATION

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        made_of_layer = False
        for factors in FACTORS.get(name, ()):
            first, second = ([self._origin(t) for t in _tensors(args[index])] for index in factors)
            for one in first:
                for other in second:
                    made_of_layer |= self._multiplied(one, other)
        origin: Origin = (
            ACTIVATION
            if made_of_layer
            else frozenset().union(*(self._origin(t) for t in _tensors((args, kwargs))))
        )
        if ACTIVATION & origin or (name in LOOKUPS and origin):
            origin = ACTIVATION
        for tensor in _tensors(result):
            if tensor not in self._origins:
                self._origins[tensor] = origin
        if name.endswith("_") and origin:
            storage = args[0].untyped_storage()
            self._origins[args[0]] = origin
            self._written[storage._cdata] = (origin, storage)
        return result

    def _multiplied(self, one: Origin, other: Origin) -> bool:
        """Note what is multiplied; say whether it is a layer's weight with a learned input."""
        learned = {n for n in one | other if n in self._dimensions and self._dimensions[n] >= 2}
        if not one or not other or not learned:
            return False
        if ACTIVATION in (one, other):
            self.applied |= learned
            return False
        layers = [origin for origin in (one, other) if learned & origin <= self.layers and learned & origin]
        if len(layers) == 1:
            self.applied |= learned & layers[0]
            return True
        self.between |= learned if one != other else set()
        return False

    def _origin(self, tensor: Tensor) -> Origin:
        own = self._origins.get(tensor, frozenset())
        if own == ACTIVATION or not self._written:
            return own
        written, _ = self._written.get(tensor.untyped_storage()._cdata, (frozenset(), None))
        return ACTIVATION if written == ACTIVATION else own | written


def layer_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that PyTorch's own layers apply, by name."""
    layers = tuple(n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd))
    attention = tuple(n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention))
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.removesuffix(".weight") in layers or name.rpartition(".")[0] in attention
    }


def _tensors(tree: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            yield leaf
