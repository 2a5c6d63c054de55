"""`F = B R` of the product rules, in three ways: in closed form, as a product of weights, and literally.

`B` is fixed, `R` learns by `dR = B^T dW`; so `F = G W + s K` with `G = B B^T` (`feedback.collapsed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pfa_convert.feedback.collapsed import Collapsed, nothing_forgotten
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.operations import Gradients, Needs, Operation
from pfa_convert.feedback.plastic import PlasticPathway

SAFE_EXPANSION = 2.0
"""From here on the condition number of a random `G` is about 34 or less, so dividing by it is safe."""


class GramState(NamedTuple):
    """`G` is `(blocks, N_out/blocks, N_out/blocks)`, or None for the identity."""

    forgetting: Tensor
    K: Tensor
    G: Tensor | None = None


@dataclass(frozen=True)
class GramPathway(Collapsed[GramState]):
    """A dense product rule, `T(W) = G W` with `G = B B^T`; without `G`, `T(W) = W`.

    If `divided`, `K` is kept divided by `G`: then `F = G (W + s K)`, so that `G` can also be applied to the
    error, `F^T delta = (W + s K)^T (G delta)`. That is the cheaper way where there are fewer positions
    than inputs to a neuron.
    """

    state_type: ClassVar[Any] = GramState
    divided: bool = False

    def feedback_weight(self, W: Tensor, state: GramState) -> Tensor:
        """Return `F = G (W + s K)`, or `G W + s K`."""
        if not self.divided:
            return super().feedback_weight(W, state)
        return self.transport(self.with_start(W, state), state)

    def transport(self, W: Tensor, state: GramState) -> Tensor:
        """Return `G W`."""
        if state.G is None:
            return W
        G, matrix = state.G.to(W.dtype), self.layout.to_blocks(W, len(state.G))
        # With one output to a block, as in a depthwise convolution, the product is one of numbers.
        return self.layout.from_blocks(G * matrix if G.shape[-1] == 1 else torch.bmm(G, matrix))

    def takes_product(self, state: GramState) -> bool:
        """Say whether there is a `G`."""
        return state.G is not None

    def gram(self, state: GramState) -> Tensor:
        """Return `G`."""
        if state.G is not None:
            return state.G
        groups, size = self.layout.groups, self.layout.outputs // self.layout.groups
        return torch.eye(size, dtype=state.K.dtype, device=state.K.device).expand(groups, size, size)

    def start(self, W: Tensor, F: Tensor, G: Tensor | None) -> GramState:
        """Return the state that makes the feedback weight of the forward weight `W` equal to `F`."""
        forgetting = nothing_forgotten(W)
        if G is None or not self.divided:
            return GramState(forgetting, F - self.transport(W, GramState(forgetting, W, G)), G)
        unmixed = torch.linalg.solve(G.double(), self.layout.to_blocks(F.double(), len(G)))
        return GramState(forgetting, self.layout.from_blocks(unmixed).to(W.dtype) - W, G)

    def beside_start(self, W: Tensor, state: GramState) -> Tensor:
        """Return `W`, or `G W`."""
        return W if self.divided else self.transport(W, state)

    def backward(
        self,
        operation: Operation,
        delta: Tensor,
        x: Tensor,
        W: Tensor,
        state: GramState,
        needs: Needs,
        learns: bool,
    ) -> tuple[Gradients, Tensor | None]:
        """Apply `G` to the weight or to the error, whichever is smaller."""
        if not needs[0] or state.G is None or not self._error_is_smaller(delta, W, state.G):
            return super().backward(operation, delta, x, W, state, needs, learns)
        below = operation.to_middle(delta, state.G.to(W.dtype))
        grad_x, _, _ = operation.gradients(below, x, self.with_start(W, state), (True, False, False))
        _, grad_W, grad_b = operation.gradients(delta, x, W, (False, *needs[1:]))
        return (grad_x, grad_W, grad_b), None

    def _error_is_smaller(self, delta: Tensor, W: Tensor, G: Tensor) -> bool:
        groups, outputs = self.layout.groups, self.layout.outputs
        if len(G) != groups or outputs == groups or not (self.divided or self.forgotten):
            return False
        return delta.numel() // outputs < W.numel() // outputs * groups


class ProductState(NamedTuple):
    """`R` and `mask` have the weight's shape, with N_mid outputs; `B` is block-diagonal.

    `B` is `(blocks, N_out/blocks, N_mid/blocks)`, with a multiple of the weight's groups as blocks.
    """

    B: Tensor
    R: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class ProductPathway(PlasticPathway[ProductState]):
    """Strategy `fused`: one product of weights per step. `orthogonal` says that `B B^T = I`."""

    state_type: ClassVar[Any] = ProductState
    plastic: ClassVar[str] = "R"
    orthogonal: bool = False

    def feedback_weight(self, W: Tensor, state: ProductState) -> Tensor:
        """Return `F = B R`."""
        B, R = state.B.to(W.dtype), state.R.to(W.dtype)
        return self.layout.from_blocks(torch.bmm(B, self._middle(B).to_blocks(R, len(B))))

    def change(self, dW: Tensor, state: ProductState) -> Tensor:
        """Return `B^T dW`."""
        B = state.B.to(dW.dtype)
        return self._middle(B).from_blocks(torch.bmm(B.mT, self.layout.to_blocks(dW, len(B))))

    def gram(self, state: ProductState) -> Tensor:
        """Return `B B^T`."""
        return torch.bmm(state.B, state.B.mT)

    def closed_form(self, W: Tensor, state: ProductState) -> tuple[Collapsed[Any], Any]:
        """Return `F = G W + s K`, unless `R` is masked."""
        if state.mask is not None:
            return super().closed_form(W, state)
        _, outputs, middle = state.B.shape
        divided = not self.orthogonal and divisible(outputs, middle)
        pathway = GramPathway(self.layout, divided=divided)
        G = None if self.orthogonal else self.gram(state)
        return pathway, pathway.start(W, self.feedback_weight(W, state), G)

    def _middle(self, B: Tensor) -> WeightLayout:
        return self.layout.with_outputs(len(B) * B.shape[2])


@dataclass(frozen=True)
class ExplicitPathway(ProductPathway):
    """Strategy `explicit`: the literal two steps through the middle population, `R` taught by activity."""

    def backward(
        self,
        operation: Operation,
        delta: Tensor,
        x: Tensor,
        W: Tensor,
        state: ProductState,
        needs: Needs,
        learns: bool,
    ) -> tuple[Gradients, Tensor | None]:
        """Send `B^T delta` to the middle neurons, and from there through `R`; `dL/dR` is local to them."""
        B, R = self._by_group(state.B.to(W.dtype)), state.R.to(W.dtype)
        middle = operation.to_middle(delta, B)
        grad_x, grad_R, _ = operation.gradients(middle, x, R, (needs[0], learns, False))
        _, grad_W, grad_b = operation.gradients(delta, x, W, (False, *needs[1:]))
        if grad_R is not None:
            grad_R = grad_R.to(state.R.dtype) if state.mask is None else state.mask * grad_R
        return (grad_x, grad_W, grad_b), grad_R

    def _by_group(self, B: Tensor) -> Tensor:
        """Return `B` with one matrix for each of the weight's groups."""
        groups = self.layout.groups
        if len(B) == groups:
            return B
        return torch.stack([torch.block_diag(*blocks) for blocks in B.unflatten(0, (groups, -1))])


def divisible(outputs: int, middle: int) -> bool:
    """Say whether a random `G` of these sizes is far enough from singular to divide `K` by it."""
    return middle >= SAFE_EXPANSION * outputs
