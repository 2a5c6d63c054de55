"""What became of each site's feedback: how well the error is aligned, and how much of its start is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfa_convert.alignment import alignment, feedback_of, gradient_angles, report_of
from pfa_convert.feedback.weight import FeedbackWeight
from pfa_convert.symmetry import symmetry


@dataclass(frozen=True)
class SiteInspection:
    """One site. Angles are in degrees; nan stands for what the rule does not have.

    `correlation`, `reciprocal`, `closest` and `closest_forward` tell how symmetric the connections are: see
    `Symmetry`.
    `angle_deg` and `norm_ratio` compare `F` with `W`; `gradient_angle_deg` this rule's `dL/dW` with
    backpropagation's on a batch; `share_of_start` is `|s K| / |F|`, what a plastic feedback weight has not
    forgotten yet; `eigenvalues` are those of `B B^T`, ascending, of all groups.
    """

    rule: str
    angle_deg: float = math.nan
    norm_ratio: float = math.nan
    gradient_angle_deg: float = math.nan
    share_of_start: float = math.nan
    eigenvalues: tuple[float, ...] = ()
    correlation: float = math.nan
    reciprocal: float = math.nan
    closest: float = math.nan
    closest_forward: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data for JSON, which has null and no nan."""
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }


def inspect(
    converted: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    inputs: Any = None,
    targets: Any = None,
) -> dict[str, SiteInspection]:
    """Return `{site: SiteInspection}`; with a loss and a batch, the gradients' angles too.

    The cost is that of about two steps of backpropagation on the batch, and of none without one. The model
    is left as it was.

    Raises:
        UserError: if the model is not a converted one.
    """
    aligned = alignment(converted)
    gradients = {} if loss_fn is None else gradient_angles(converted, loss_fn, inputs, targets)
    found = {}
    for site in report_of(converted).sites:
        feedback = feedback_of(converted, site.weight)
        W = converted.get_parameter(site.weight)
        found[site.name] = SiteInspection(
            rule=site.rule,
            **aligned.get(site.name, {}),
            gradient_angle_deg=gradients.get(site.name, math.nan),
            share_of_start=math.nan if feedback is None else share_of_start(feedback, W),
            eigenvalues=() if feedback is None else eigenvalues_of_gram(feedback),
            **asdict(symmetry(feedback, W)),
        )
    return found


@torch.no_grad()
def share_of_start(feedback: FeedbackWeight, W: Tensor) -> float:
    """Return `|F - T(W)| / |F|`, where `T(W)` is what a plastic `F` comes to; nan for any other."""
    pathway, state = feedback.pathway, feedback.named_state()
    F, T = pathway.feedback_weight(W, state), pathway.transport(W, state)
    return math.nan if T is None or not F.norm() else ((F - T).norm() / F.norm()).item()


@torch.no_grad()
def eigenvalues_of_gram(feedback: FeedbackWeight) -> tuple[float, ...]:
    """Return the eigenvalues of `G = B B^T`, ascending; of no rule but the product rules."""
    G = feedback.pathway.gram(feedback.named_state())
    if G is None:
        return ()
    return tuple(torch.linalg.eigvalsh(G.double()).flatten().sort().values.tolist())
