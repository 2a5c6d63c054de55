"""Product feedback alignment: the error goes down through two weights, `B` fixed and `R` plastic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pfa_convert.feedback.collapsed import CollapsedPathway, MaskedMixedPathway, mixed_pathway
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.operations import Needs, Operation
from pfa_convert.feedback.pathway import Pathway, State
from pfa_convert.rules.base import RULES, Draw, SparseRule


class ProductRule(SparseRule):
    """`F = B R`: `R` learns with gradient `B^T dL/dW` and so comes to `B^T W` as it forgets its start."""

    strategies = ("fused", "explicit", "collapsed")
    two_steps = True
    cost = (
        "`collapsed`: one product G W of weights per step (pfa-o: nothing); `fused`: the products B R and "
        "B^T dW, R and its optimizer state; `explicit`: the activity of N_mid neurons at every position"
    )

    def pathway(self, layout: WeightLayout) -> Pathway:
        """Return the pathway of the chosen strategy, masked if the feedback is sparse."""
        sparse = self.feedback_density < 1
        if self.strategy == "explicit":
            return MaskedExplicitPathway(layout) if sparse else ExplicitPathway(layout)
        return MaskedProductPathway(layout) if sparse else ProductPathway(layout)

    def initial_state(self, layout: WeightLayout, draw: Draw) -> dict[str, Tensor]:
        """Draw `B` `(groups, N_out/g, N_mid/g)` and `R` (the weight's shape with N_mid outputs)."""
        B = self.draw_B(layout, draw)
        middle = layout.with_outputs(B.shape[0] * B.shape[2])
        R = draw.uniform(middle.shape, middle.xavier_std)
        if self.feedback_density == 1:
            return {"B": B, "R": R}
        mask = draw.mask(middle.shape, self.feedback_density)
        return {"B": B * draw.mask(tuple(B.shape), self.feedback_density), "R": R * mask, "mask": mask}

    def draw_B(self, layout: WeightLayout, draw: Draw) -> Tensor:
        """Return `B`, one block per group, with `E[B B^T] = I`."""
        raise NotImplementedError


@RULES.register("pfa")
class ProductFeedbackAlignment(ProductRule):
    """`F = B R` with a random `B` of `expansion` times as many middle neurons as outputs.

    The expected path angle once `R = B^T W` is `atan(1/sqrt(expansion))`.
    """

    name = "pfa"
    title = "product feedback alignment"
    formula = "F = B R, dR = B^T dW"
    source = "Li & Benna 2024, arXiv 2405.20594"

    expansion: float = Field(
        10.0, gt=0, le=10_000, description="middle neurons per output neuron, N_mid / N_out"
    )

    def draw_B(self, layout: WeightLayout, draw: Draw) -> Tensor:
        """Draw `B` uniformly with variance `1 / (density N_mid)`, as Xavier's with the paper's gain."""
        outputs = layout.outputs // layout.groups
        middle = max(1, round(self.expansion * outputs))
        std = 1.0 / math.sqrt(self.feedback_density * middle)
        return draw.uniform((layout.groups, outputs, middle), std)


@RULES.register("pfa-o")
class OrthogonalProductFeedbackAlignment(ProductRule):
    """`F = B R` with an orthogonal `B` and as many middle neurons as outputs; the path angle goes to 0."""

    name = "pfa-o"
    title = "product feedback alignment with orthogonal B"
    formula = "F = B R, dR = B^T dW, B B^T = I"
    source = "Li & Benna 2024, arXiv 2405.20594"

    def draw_B(self, layout: WeightLayout, draw: Draw) -> Tensor:
        """Draw an orthogonal matrix for each group; masked entries leave `E[B B^T] = I` as well."""
        B = draw.orthogonal(layout.groups, layout.outputs // layout.groups)
        return B / math.sqrt(self.feedback_density)


@dataclass(frozen=True)
class ProductPathway(Pathway):
    """Strategy `fused`: one product of weights per step, right for every optimizer."""

    names: ClassVar[tuple[str, ...]] = ("B", "R")
    plastic: ClassVar[frozenset[str]] = frozenset({"R"})

    def feedback_weight(self, W: Tensor, *state: Tensor) -> Tensor:
        """Return `F = B R`."""
        B, R = state[:2]
        B = B.to(W.dtype)
        return self.layout.from_matrix(torch.bmm(B, self.middle(B).to_matrix(R.to(W.dtype))))

    def state_gradients(self, grad_W: Tensor, *state: Tensor) -> tuple[Tensor | None, ...]:
        """Return `dL/dR = B^T dL/dW`."""
        B = state[0]
        product = torch.bmm(B.transpose(1, 2), self.layout.to_matrix(grad_W.to(B.dtype)))
        return None, self.middle(B).from_matrix(product)

    def mixing(self, *state: Tensor) -> Tensor | None:
        """Return `B B^T`."""
        B = state[0]
        return torch.bmm(B, B.transpose(1, 2))

    def collapse(self, W: Tensor, *state: Tensor) -> tuple[Pathway, State]:
        """Return `F = G W + s K`; with an orthogonal `B`, `F = W + s K`."""
        B = state[0]
        F = self.feedback_weight(W, *state)
        pathway, G = mixed_pathway(self, B)
        identity = torch.eye(G.shape[1], dtype=G.dtype, device=G.device).expand_as(G)
        if torch.allclose(G, identity, rtol=0, atol=32 * torch.finfo(G.dtype).eps):
            pathway = CollapsedPathway(self.layout)
            return pathway, pathway.start(W, F)
        return pathway, pathway.start(W, F, G)

    def middle(self, B: Tensor) -> WeightLayout:
        """Return the layout of `R`."""
        return self.layout.with_outputs(B.shape[0] * B.shape[2])


@dataclass(frozen=True)
class MaskedProductPathway(ProductPathway):
    """The same with a fixed mask on `R`, whose first value respects it already."""

    names: ClassVar[tuple[str, ...]] = ("B", "R", "mask")

    def state_gradients(self, grad_W: Tensor, *state: Tensor) -> tuple[Tensor | None, ...]:
        """Return `mask o (B^T dL/dW)`."""
        _, grad_R = super().state_gradients(grad_W, *state[:2])
        assert grad_R is not None
        return None, state[2] * grad_R, None

    def collapse(self, W: Tensor, *state: Tensor) -> tuple[Pathway, State]:
        """Return `F = B (M o (B^T W)) + s K`."""
        B, _, mask = state
        pathway = MaskedMixedPathway(self.layout)
        return pathway, pathway.start(W, self.feedback_weight(W, *state), B, mask)


@dataclass(frozen=True)
class ExplicitPathway(ProductPathway):
    """Strategy `explicit`: the literal two steps through the middle population, `R` taught by activity."""

    def backward(
        self, operation: Operation, delta: Tensor, x: Tensor, W: Tensor, state: State, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        """Send `B^T delta` to the middle neurons, and from there through `R`; `dL/dR` is local to them."""
        B, R = state[0].to(W.dtype), state[1].to(W.dtype)
        middle = operation.to_middle(delta, B)
        wanted: Needs = (needs[0], needs[4], False)
        grad_x, grad_R, _ = operation.gradients(middle, x, R, wanted)
        _, grad_W, grad_b = operation.gradients(delta, x, W, (False, needs[1], needs[2]))
        if grad_R is not None:
            grad_R = self.local_gradient(grad_R.to(state[1].dtype), state)
        return grad_x, grad_W, grad_b, None, grad_R, *(None,) * (len(state) - 2)

    def local_gradient(self, grad_R: Tensor, state: State) -> Tensor:
        """Return the gradient that the connections of `R` learn with."""
        return grad_R


@dataclass(frozen=True)
class MaskedExplicitPathway(ExplicitPathway):
    """The same for the connections that exist."""

    names: ClassVar[tuple[str, ...]] = ("B", "R", "mask")

    def local_gradient(self, grad_R: Tensor, state: State) -> Tensor:
        """Return `mask o dL/dR`."""
        return state[2] * grad_R
