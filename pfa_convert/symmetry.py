"""How symmetric a site's forward and backward connections are: what the biological argument is about.

Backpropagation needs, beside every synapse, another between the same two neurons in the other direction, and
of the same strength. Each figure here is 1 for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.weight import FeedbackWeight


@dataclass(frozen=True)
class Symmetry:
    """Nan stands for what a rule does not have.

    `correlation` is Pearson's between the entries of `F` and `W`: of what the pathway does as a whole.
    `reciprocal` is the share of the forward connections whose two neurons are connected backwards too.
    `closest` compares neurons: for each one that the error passes, the largest magnitude of correlation of
    its backward weights with any neuron's forward weights, averaged. With two steps, `B` and `R`, these
    are the middle neurons and their rows of `R`; the collapsed strategy has none. `closest_forward` is the
    same between each forward neuron and the others: what there is without any copying.
    """

    correlation: float = math.nan
    reciprocal: float = math.nan
    closest: float = math.nan
    closest_forward: float = math.nan


@torch.no_grad()
def symmetry(feedback: FeedbackWeight | None, W: Tensor) -> Symmetry:
    """Return the symmetry of one site.

    Args:
        feedback: its feedback state; None where the error goes back through `W` itself.
        W: its forward weight.
    """
    if feedback is None:
        return Symmetry(1.0, 1.0, 1.0)
    if not feedback.pathway.follows_weight:
        return Symmetry()
    F, layout = feedback.feedback_weight(W), feedback.pathway.layout
    among = closest_to_another(W, layout)
    correlation = torch.corrcoef(torch.stack([F.double().flatten(), W.double().flatten()]))[0, 1].item()
    if feedback.pathway.gram(feedback.named_state()) is None:
        return Symmetry(correlation, (F != 0).double().mean().item(), closest(F, W, layout), among)
    # With a `B` of its own, the error passes neurons that no forward connection reaches.
    R = dict(zip(feedback.pathway.names, feedback.state(), strict=True)).get("R")
    return Symmetry(correlation, 0.0, math.nan if R is None else closest(R, W, layout), among)


def closest(backward: Tensor, W: Tensor, layout: WeightLayout) -> float:
    """Return the mean, over the rows of `backward`, of the largest `|correlation|` with a row of `W`."""
    rows = replace(layout, shape=tuple(backward.shape)).to_matrix(backward.to(W.dtype))
    correlations = torch.bmm(_standardised(rows), _standardised(layout.to_matrix(W)).transpose(1, 2))
    return correlations.abs().amax(dim=2).mean().item()


def closest_to_another(W: Tensor, layout: WeightLayout) -> float:
    """Return the mean, over the rows of `W`, of the largest `|correlation|` with another row; nan for one."""
    rows = _standardised(layout.to_matrix(W))
    if rows.shape[1] < 2:
        return math.nan
    correlations = torch.bmm(rows, rows.transpose(1, 2)).abs()
    correlations.diagonal(dim1=1, dim2=2).zero_()
    return correlations.amax(dim=2).mean().item()


def _standardised(rows: Tensor) -> Tensor:
    """Centre each row and give it the length 1; a row without variance becomes 0."""
    centred = rows - rows.mean(dim=2, keepdim=True)
    return torch.nn.functional.normalize(centred, dim=2)
