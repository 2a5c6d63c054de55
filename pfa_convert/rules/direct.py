"""Direct feedback alignment: the error at the model's output, sent to each layer at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from pfa_convert.feedback.direct import DirectPathway, DirectState
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.rules.base import RULES, Rule, SparseRule
from pfa_convert.rules.draw import Draw


@RULES.register("dfa")
class DirectFeedbackAlignment(SparseRule):
    """The error below each layer is `F e`, with `e = dL/dlogits` and `F` fixed and random.

    `F` is `(N_e, N_in, *k)` for `N_e` outputs of the model, drawn from Xavier's uniform distribution for
    that shape. A convolution's `e` stands at every position of its output. The gradient of each weight is
    the ordinary one of the error that arrives, which at the last layer is `e` itself.

    The input of a layer must begin with the batch; what sees several windows of one image as a batch of
    their own must keep them next to each other.
    """

    title = "direct feedback alignment"
    formula = "dL/dx = F e, e = dL/dlogits"
    source = "Nokland 2016; Launay, Poli, Boniface & Krzakala 2020"
    cost = "less time than backpropagation where the model has few outputs; F in memory"

    outputs: int | None = Field(None, ge=1, description="the model's outputs; the last site's by default")

    def for_model(self, layouts: Sequence[WeightLayout]) -> Rule:
        """Return the rule that knows the number of the model's outputs."""
        outputs = layouts[-1].outputs if self.outputs is None else self.outputs
        return self.model_copy(update={"outputs": outputs})

    def obstacle(self, layout: WeightLayout) -> str | None:
        """Say that direct feedback needs a row or a position for each example."""
        return None if layout.takes_rows else "dfa has no meaning without rows of examples"

    def pathway(self, layout: WeightLayout) -> DirectPathway:
        """Return the pathway from the output."""
        return DirectPathway(self._direct(layout))

    def initial_state(self, layout: WeightLayout, draw: Draw) -> DirectState:
        """Draw `F`, and its mask if the feedback is sparse."""
        direct = self._direct(layout)
        F = draw.uniform(direct.shape, direct.xavier_std)
        if self.feedback_density < 1:
            F = F * draw.mask(direct.shape, self.feedback_density)
        return DirectState(F)

    def _direct(self, layout: WeightLayout) -> WeightLayout:
        """Return the layout of a map from the layer's inputs, in all its groups, to the model's outputs."""
        inputs = layout.shape[0] if layout.transposed else layout.shape[1] * layout.groups
        outputs = self.outputs or layout.outputs
        first = (inputs, outputs) if layout.transposed else (outputs, inputs)
        return replace(layout, shape=(*first, *layout.shape[2:]), groups=1)
