"""Gradients with `F = 2 W` at every application of a weight, by plain autograd and nothing of the package.

The graph that autograd recorded of the plain model is searched for its products. Where one operand was
computed from Parameters alone, the error that the product hands down to the other one is doubled by a hook. A
converted model whose feedback weights are set to `2 W` must have these gradients: a use without feedback
would not double.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from account import layer_weights
from torch import Tensor, nn

OPERANDS = {
    "MmBackward0": (0, 1),
    "BmmBackward0": (0, 1),
    "MvBackward0": (0, 1),
    "DotBackward0": (0, 1),
    "LinearBackward0": (0, 1),
    "AddmmBackward0": (1, 2),
    "BaddbmmBackward0": (1, 2),
    "AddbmmBackward0": (1, 2),
    "AddmvBackward0": (1, 2),
    "ConvolutionBackward0": (0, 1),
    "TrilinearBackward0": (0, 1, 2),
    "GroupedMmBackward0": (0, 1),
    "SparseAddmmBackward0": (1, 2),
}
"""Autograd's operations that multiply operands, and which of their edges lead to those."""

VIEWS = re.compile(
    r"(T|Transpose|Permute|View|UnsafeView|ReshapeAlias|AsStrided|Select|Slice|Split|SplitWithSizes|Expand"
    r"|Unsqueeze|Squeeze|Unbind|Clone|Alias|Detach|Mul|Div|Neg|ToCopy|Movedim|Chunk|Narrow|Unfold|Diagonal)"
    r"(Backward\d+)"
)
"""Operations that are linear in what they are given, as far as their other operand is no Parameter."""

LOOKUPS = (
    "EmbeddingBackward",
    "IndexBackward",
    "IndexSelectBackward",
    "GatherBackward",
    "EmbeddingBagBackward",
)


class Doubling:
    """Finds the applications of weights below some outputs, and doubles the error that they hand down.

    `applied` are the Parameters that are applied; `unchanged` those among them that a non-linear function, or
    one of several Parameters, computes a weight from, and those `named` as no sites: their applications hand
    down what they did.
    """

    def __init__(self, model: nn.Module, outputs: Iterable[Tensor], named: Iterable[Tensor] = ()) -> None:
        self._layers = set(layer_weights(model).values())
        self._parameters = set(model.parameters())
        self._known: dict[Any, frozenset[Tensor] | None] = {}
        nodes = _nodes(outputs)
        self._terms = {terms for node in nodes if (terms := _terms(node)) is not None}
        found = [(node, *use) for node in nodes for use in self._uses(node)]
        self.applied = {p for _, _, weight, _ in found for p in weight}
        self.unchanged: set[Tensor] = set(named)
        for _, _, weight, simple in found:
            if not simple:
                self.unchanged |= weight
        for node, below, weight, _ in found:
            if not weight & self.unchanged:
                node.register_hook(_double(below))

    def _uses(self, node: Any) -> Iterator[tuple[list[int], frozenset[Tensor], bool]]:
        """Yield the edges to the error below, the weight's Parameters, and whether it is a view of one."""
        edges = OPERANDS.get(node.name(), (0, 1, 2, 3) if "DeformConv2d" in node.name() else ())
        edges = (0, 1) if node in self._terms else edges
        operands = {i: node.next_functions[i][0] for i in edges if i < len(node.next_functions)}
        learned = {i: self._learned(below) for i, below in operands.items()}
        weights = [i for i, found in learned.items() if found]
        if len(weights) == len(operands):
            layers = [i for i in weights if learned[i] <= self._layers]
            weights = (
                layers if len(layers) == 1 else []
            )  # a learned input of a layer, or nothing that learns alone
        for i in weights:
            below = [other for other in operands if other != i and operands[other] is not None]
            yield below, learned[i] or frozenset(), self._is_simple(operands[i])

    def _learned(self, node: Any) -> frozenset[Tensor] | None:
        """Return the Parameters that an edge leads to; None if it leads to activations, too."""
        if node is None:
            return frozenset()
        stack = [(node, False)]
        while stack:
            current, done = stack.pop()
            if current in self._known:
                continue
            below = [n for n, _ in current.next_functions if n is not None]
            if not done:
                stack.append((current, True))
                stack += [(n, False) for n in below if n not in self._known]
            elif hasattr(current, "variable"):
                is_parameter = current.variable in self._parameters
                self._known[current] = frozenset([current.variable]) if is_parameter else None
            elif current.name().startswith(LOOKUPS):
                self._known[current] = None
            else:
                sets = [self._known[n] for n in below]
                layers = [one for one in sets if one and one <= self._layers]
                applied = (
                    current.name() in OPERANDS and len(layers) == 1 and len([one for one in sets if one]) > 1
                )
                self._known[current] = None if None in sets or applied else frozenset().union(*sets)
        return self._known[node]

    def _is_simple(self, node: Any) -> bool:
        while not hasattr(node, "variable"):
            below = [n for n, _ in node.next_functions if n is not None]
            if len(below) != 1 or not VIEWS.fullmatch(node.name()):
                return False
            node = below[0]
        return True


def _terms(node: Any) -> Any:
    """Return the multiplication, element by element, whose terms a node sums over what both factors have."""
    if not node.name().startswith(("SumBackward", "MeanBackward")):
        return None
    terms = node.next_functions[0][0]
    if terms is None or terms.name() != "MulBackward0":
        return None
    factors = [factor for factor in (terms._saved_self, terms._saved_other) if factor is not None]
    dimensions = max(factor.dim() for factor in factors)
    summed = getattr(node, "_saved_dim", None) or range(dimensions)
    shapes = [(1,) * (dimensions - factor.dim()) + tuple(factor.shape) for factor in factors]
    # What counts from the last is saved as the number without a sign.
    places = [dim - 2**64 + dimensions if dim >= 2**63 else dim for dim in summed]
    return terms if any(all(shape[place] > 1 for shape in shapes) for place in places) else None


def _double(edges: list[int]) -> Any:
    def hook(below: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
        return tuple(
            2 * error if error is not None and i in edges else error for i, error in enumerate(below)
        )

    return hook


def _nodes(outputs: Iterable[Tensor]) -> list[Any]:
    stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(stack)
    for node in stack:
        fresh = [n for n, _ in node.next_functions if n is not None and n not in seen]
        seen.update(fresh)
        stack.extend(dict.fromkeys(fresh))
    return stack
