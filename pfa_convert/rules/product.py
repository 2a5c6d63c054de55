"""Product feedback alignment: the error goes down through two weights, `B` fixed and `R` plastic."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pfa_convert.feedback.collapsed import Collapsed, nothing_forgotten
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.feedback.plastic import PlasticPathway
from pfa_convert.feedback.product_pathway import (
    ExplicitPathway,
    GramPathway,
    GramState,
    ProductPathway,
    ProductState,
    divisible,
)
from pfa_convert.feedback.strategy import Strategy
from pfa_convert.feedback.wishart import bartlett_factor, product_with_transpose
from pfa_convert.rules.base import RULES, PlasticRule, SparseRule
from pfa_convert.rules.draw import Draw


class ProductRule(SparseRule, PlasticRule):
    """`F = B R`: `R` receives `B^T` times what `W` receives, and so comes to `B^T W` as it forgets `R0`."""

    strategies = ("collapsed", "fused", "explicit")
    cost = (
        "`collapsed`: one product G W of weights per step (pfa-o: nothing); `fused`: the products B R and "
        "B^T dW, R and its optimizer state; `explicit`: the activity of N_mid neurons at every position"
    )

    law: Literal["normal", "uniform"] = Field(
        "normal", description="law of the entries of B and R; the paper's is uniform, and slow to draw"
    )

    aligned: bool = Field(
        False, description="begin with `R_0 = B^T W_0`, which has nothing to forget: for trained weights"
    )

    def pathway(self, layout: WeightLayout) -> ProductPathway:
        """Return the pathway with a plastic `R`."""
        form = ExplicitPathway if self.choice.strategy is Strategy.EXPLICIT else ProductPathway
        return form(layout, self.orthogonal)

    def initial_state(self, layout: WeightLayout, draw: Draw) -> ProductState:
        """Draw `B` `(blocks, N_out/blocks, N_mid/blocks)` and `R` (the weight's shape with N_mid outputs)."""
        B = self.draw_B(layout, draw)
        middle = layout.with_outputs(len(B) * B.shape[2])
        R = self._entries(draw, middle.shape, middle.xavier_std)
        if self.feedback_density == 1:
            return ProductState(B, R)
        mask = draw.mask(middle.shape, self.feedback_density)
        return ProductState(B * draw.mask(tuple(B.shape), self.feedback_density), R * mask, mask)

    def start(self, layout: WeightLayout, W: Tensor, draw: Draw) -> tuple[Pathway[Any], Any]:
        """Return pathway and state, aligned with `W` if that is asked for."""
        pathway, state = super().start(layout, W, draw)
        return pathway, _aligned(pathway, W, state) if self.aligned else state

    def drawn(
        self, layout: WeightLayout, W: Tensor, draw: Draw
    ) -> tuple[PlasticPathway[Any] | Collapsed[Any], Any]:
        """Return pathway and state; a dense closed form with normal entries is drawn directly."""
        collapsed = self.choice.strategy is Strategy.COLLAPSED
        if collapsed and self.law == "normal" and self.feedback_density == 1:
            direct = self.draw_closed_form(layout, W, draw)
            if direct is not None:
                return direct
        return super().drawn(layout, W, draw)

    def draw_closed_form(
        self, layout: WeightLayout, W: Tensor, draw: Draw
    ) -> tuple[GramPathway, GramState] | None:
        """Return the closed form with a state of the law that `initial_state` has, without drawing `B`.

        None where `B` and `R` are smaller than that.
        """
        raise NotImplementedError

    def draw_B(self, layout: WeightLayout, draw: Draw) -> Tensor:
        """Return `B`, a block for each middle population (at least one per group), with `E[B B^T] = I`."""
        raise NotImplementedError

    @property
    def orthogonal(self) -> bool:
        """Whether `B B^T = I`."""
        return False

    def _entries(self, draw: Draw, shape: tuple[int, ...], std: float) -> Tensor:
        return (draw.normal if self.law == "normal" else draw.uniform)(shape, std)


@RULES.register("pfa")
class ProductFeedbackAlignment(ProductRule):
    """`F = B R` with a random `B` of `expansion` times as many middle neurons as outputs.

    The expected path angle once `R = B^T W` is `atan(1/sqrt(expansion))`.
    """

    title = "product feedback alignment"
    formula = "F = B R, dR = B^T dW"
    source = "Li & Benna 2024, arXiv 2405.20594"

    expansion: float = Field(
        10.0, gt=0, le=10_000, description="middle neurons per output neuron, N_mid / N_out"
    )

    block_size: int | None = Field(
        None,
        ge=1,
        description="most outputs that share a middle population, so that `G W` costs less; all of them by "
        "default. The largest divisor of N_out up to this is taken; the path angle stays nearly the same",
    )

    def draw_B(self, layout: WeightLayout, draw: Draw) -> Tensor:
        """Draw `B` with variance `1 / (density N_mid)`, as Xavier's with the paper's gain."""
        blocks, outputs, middle = self._sizes(layout)
        return self._entries(draw, (blocks, outputs, middle), 1.0 / math.sqrt(self.feedback_density * middle))

    def draw_closed_form(
        self, layout: WeightLayout, W: Tensor, draw: Draw
    ) -> tuple[GramPathway, GramState] | None:
        """Draw `G = L L^T / N_mid` and `F_0 = sigma L Z / sqrt(N_mid)`; no middle population is made."""
        blocks, outputs, middle = self._sizes(layout)
        if middle < outputs:  # G is singular, B and R are smaller than G and W
            return None
        sigma = layout.with_outputs(middle * blocks).xavier_std
        exact = draw.exact
        degrees = (middle - torch.arange(outputs, dtype=torch.float64, device="cpu")).expand(blocks, outputs)
        L = bartlett_factor(exact.normal((blocks, outputs, outputs)), exact.chi(degrees))
        Z = exact.normal((blocks, outputs, W.numel() // layout.outputs), sigma)
        pathway = GramPathway(layout, divided=divisible(outputs, middle))
        if pathway.divided:
            # G^-1 F_0 = sqrt(N_mid) L^-T Z
            unmixed = torch.linalg.solve_triangular(L.mT, Z, upper=True).mul_(math.sqrt(middle))
            G = product_with_transpose(L).div_(middle).to(W.dtype)
            K = layout.from_blocks(unmixed).to(W.dtype).sub_(W)
            return pathway, GramState(nothing_forgotten(W), K, G)
        F = layout.from_blocks(torch.bmm(L, Z).div_(math.sqrt(middle)))
        G = product_with_transpose(L).div_(middle).to(W.dtype)
        return pathway, pathway.start(W, F.to(W.dtype), G)

    def _sizes(self, layout: WeightLayout) -> tuple[int, int, int]:
        """Return the number of middle populations, and the outputs and middle neurons of each."""
        outputs = layout.outputs // layout.groups
        if self.block_size is not None:
            outputs = next(n for n in range(min(self.block_size, outputs), 0, -1) if outputs % n == 0)
        return layout.outputs // outputs, outputs, max(1, round(self.expansion * outputs))


@RULES.register("pfa-o")
class OrthogonalProductFeedbackAlignment(ProductRule):
    """`F = B R` with an orthogonal `B` and as many middle neurons as outputs; the path angle goes to 0."""

    title = "product feedback alignment with orthogonal B"
    formula = "F = B R, dR = B^T dW, B B^T = I"
    source = "Li & Benna 2024, arXiv 2405.20594"

    @property
    def orthogonal(self) -> bool:
        """`B B^T = I` unless entries of `B` are masked."""
        return self.feedback_density == 1

    def draw_B(self, layout: WeightLayout, draw: Draw) -> Tensor:
        """Draw an orthogonal matrix for each group; masked entries leave `E[B B^T] = I` as well."""
        B = draw.orthogonal(layout.groups, layout.outputs // layout.groups)
        return B / math.sqrt(self.feedback_density)

    def draw_closed_form(self, layout: WeightLayout, W: Tensor, draw: Draw) -> tuple[GramPathway, GramState]:
        """Draw `F_0 = B R_0`, which has the law of `R_0`."""
        F = draw.normal(layout.shape, layout.with_outputs(layout.outputs).xavier_std)
        pathway = GramPathway(layout)
        return pathway, pathway.start(W, F, None)


def _aligned(pathway: Pathway[Any], W: Tensor, state: Any) -> Any:
    """Return the state with `R = B^T W`, masked as `R` is; in closed form, `K = B (R_0 - B^T W_0) = 0`."""
    if isinstance(pathway, Collapsed):
        return state._replace(K=torch.zeros_like(state.K))
    assert isinstance(pathway, ProductPathway)
    R = pathway.change(W, state)
    return state._replace(R=R if state.mask is None else R * state.mask)
