"""Plastic feedback weights, by what is the same for all of them: two linear maps, and their closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pfa_convert.feedback.collapsed import Collapsed, nothing_forgotten, ratio_of_norms
from pfa_convert.feedback.pathway import Pathway, State, Tensors


@dataclass(frozen=True)
class PlasticPathway(Pathway[State]):
    """The strategy `fused`: `F(P)` of a plastic tensor `P`, which learns by `dP = A(dW)`; both are linear.

    A rule names its plastic tensor and states the two maps, `feedback_weight` and `change`. Where its state
    has a field `mask`, the plastic tensor has only the connections for which that is 1, from its start on.
    """

    plastic: ClassVar[str]

    def change(self, dW: Tensor, state: State) -> Tensor:
        """Return `A(dW)`, of the shape of the plastic tensor, for a change of the weight or its gradient."""
        raise NotImplementedError

    def masked_change(self, dW: Tensor, state: State) -> Tensor:
        """Return `M o A(dW)`."""
        change, mask = self.change(dW, state), getattr(state, "mask", None)
        return change if mask is None else change * mask.to(change.dtype)

    def plastic_gradient(self, grad_W: Tensor, state: State) -> Tensor:
        """Return `A(dL/dW)` in the precision of the plastic tensor."""
        P: Tensor = getattr(state, self.plastic)
        return self.masked_change(grad_W.to(P.dtype), state)

    def transport(self, W: Tensor, state: Any) -> Tensor:
        """Return `T(W) = F(A(W))`."""
        return self.feedback_weight(W, state._replace(**{self.plastic: self.masked_change(W, state)}))

    @torch.no_grad()
    def with_norm_of(self, W: Tensor, state: Any) -> Any:
        """Return the state with `P` scaled so that `|F| = |W|`; as it is where either is zero."""
        P: Tensor = getattr(state, self.plastic)
        scale = ratio_of_norms(W, self.feedback_weight(W, state))
        return state._replace(**{self.plastic: P * scale.to(P.dtype)})

    def closed_form(self, W: Tensor, state: Any) -> tuple[Collapsed[Any], Any]:
        """Return the collapsed pathway and its state for the present `W`; it is exact from here on."""
        K = self.feedback_weight(W, state).detach() - self.transport(W, state)
        fixed = state._replace(**{self.plastic: None})
        return DerivedPathway(self.layout, rule=self), DerivedState(nothing_forgotten(W), K, fixed)


class DerivedState(NamedTuple):
    """`forgetting`, `K`, and the rule's own state without its plastic tensor."""

    forgetting: Tensor
    K: Tensor
    fixed: Any


@dataclass(frozen=True)
class DerivedPathway(Collapsed[DerivedState]):
    """The closed form of any plastic rule: `T(W) = F(A(W))`, computed by the rule's own two maps."""

    rule: PlasticPathway[Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """`forgetting`, `K`, and what the rule's own state has beside its plastic tensor."""
        return "forgetting", "K", *(name for name in self._rule.names if name != self._rule.plastic)

    def state_of(self, tensors: Sequence[Any]) -> DerivedState:
        """Return the state with its names."""
        forgetting, K, *others = tensors
        fixed = list(others)  # PyTorch 2.11 compiles the starred name as a tuple
        fixed.insert(self._rule.names.index(self._rule.plastic), None)
        return DerivedState(forgetting, K, self._rule.state_of(fixed))

    def tensors_of(self, state: DerivedState) -> Tensors:
        """Undo `state_of`."""
        fixed = zip(self._rule.names, self._rule.tensors_of(state.fixed), strict=True)
        return state.forgetting, state.K, *(tensor for name, tensor in fixed if name != self._rule.plastic)

    def transport(self, W: Tensor, state: DerivedState) -> Tensor:
        """Return `F(A(W))`."""
        return self._rule.transport(W, state.fixed)

    def takes_product(self, state: DerivedState) -> bool:
        """Say whether the rule has a `B`."""
        return type(self._rule).gram is not Pathway.gram

    def gram(self, state: DerivedState) -> Tensor | None:
        """Return the rule's `B B^T`, as it is without a mask on the plastic tensor."""
        return self._rule.gram(state.fixed)

    @property
    def _rule(self) -> PlasticPathway[Any]:
        assert self.rule is not None
        return self.rule
