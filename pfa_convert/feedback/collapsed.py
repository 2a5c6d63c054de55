"""The strategy `collapsed`: a plastic feedback weight in closed form, without the plastic tensor.

A plastic `P` receives `A` of what the weight receives, and forgets at the rate at which the weight decays.
So `D = P - A(W)` receives nothing: it only decays, every entry by the same factor `s`. With `F(P)` linear,
`F = T(W) + s K`, where `T(W) = F(A(W))` and `K` is what `F` differed by at first: docs/exact-pfa.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pfa_convert.feedback.operations import Gradients, Needs, Operation
from pfa_convert.feedback.pathway import Pathway, State

S = 0
"""The entry of the state tensor `forgetting` that is `s`; behind it its momentum, and 1 once it has one."""


def nothing_forgotten(W: Tensor) -> Tensor:
    """Return the tensor `forgetting` of a start: `s = 1`, and no momentum."""
    return torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, device=W.device)


def ratio_of_norms(W: Tensor, F: Tensor) -> Tensor:
    """Return `|W| / |F|`, or 1 where either is zero."""
    above, below = W.norm(), F.norm()
    return torch.where((above > 0) & (below > 0), above / below, 1.0)


@dataclass(frozen=True)
class Collapsed(Pathway[State]):
    """`F = T(W) + s K`; its state begins with `forgetting` and `K`.

    `forgotten` is set once `s K` is too small to change `F`; `K` is empty from then on.
    """

    forgotten: bool = False

    def feedback_weight(self, W: Tensor, state: State) -> Tensor:
        """Return `F = T(W) + s K`."""
        return self.with_start(self.transport(W, state), state)

    def transport(self, W: Tensor, state: State) -> Tensor:
        """Return `T(W)`."""
        raise NotImplementedError

    def with_start(self, T: Tensor, state: Any) -> Tensor:
        """Return `T + s K`."""
        if self.forgotten:
            return T
        return torch.addcmul(T, state.K.to(T.dtype), state.forgetting[S].to(T.dtype))

    @torch.no_grad()
    def with_norm_of(self, W: Tensor, state: Any) -> Any:
        """Return a first state with `K` such that `F` is scaled to `|F| = |W|`; as it is where one is 0."""
        scale = ratio_of_norms(W, self.feedback_weight(W, state))
        return state._replace(K=scale * state.K + (scale - 1) * self.beside_start(W, state))

    def beside_start(self, W: Tensor, state: State) -> Tensor:
        """Return what `s K` is added to."""
        return self.transport(W, state)

    def forget(self, state: Any) -> tuple[Collapsed[State], State]:
        """Return the pathway without `K`, and its state."""
        return replace(self, forgotten=True), state._replace(K=state.K.new_empty(0))


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
