"""The strategy `collapsed`: a plastic feedback weight in closed form, without the plastic tensor.

A plastic `P` receives `A` of what the weight receives, and forgets at the rate at which the weight decays.
So `D = P - A(W)` receives nothing: it only decays, every entry by the same factor `s`. With `F(P)` linear,
`F = T(W) + s K`, where `T(W) = F(A(W))` and `K` is what `F` differed by at first: docs/exact-pfa.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

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

    def takes_product(self, state: State) -> bool:
        """Say whether `T(W)` takes a product of weights."""
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
