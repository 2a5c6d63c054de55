"""Feedback weights that each layer learns by itself, from noise: weight mirrors, information alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.rules.base import RULES, Rule
from pfa_convert.rules.draw import Draw


class NoiseRule(Rule):
    """`F` starts at random and learns in phases between the steps, from noise that its layer passes on.

    In a phase each output position of the layer sees white noise `x ~ N(0, 1)`, and passes on `y = W x`;
    neither loss nor error is there. `feedback_phase(model)` runs one phase of every layer; the trainer does
    so after each step, or each `train.phase_interval` of them.
    """

    samples: int = Field(256, ge=1, description="noise vectors in a phase")
    rate: float = Field(0.02, gt=0, lt=1, description="learning rate of F in a phase")

    def initial_state(self, layout: WeightLayout, draw: Draw) -> NoiseState:
        """Draw the first `F`, and the seed of the first phase's noise."""
        return NoiseState(draw.uniform(layout.shape, layout.xavier_std), draw.seed())


class NoiseState(NamedTuple):
    """`F` has the weight's shape; `noise` is the seed of the next phase's noise."""

    F: Tensor
    noise: Tensor


@dataclass(frozen=True)
class NoisePathway(Pathway[NoiseState]):
    """A feedback weight learned from noise, by three terms with a weight each."""

    state_type: ClassVar[Any] = NoiseState
    samples: int = 256
    rate: float = 0.02
    amp: float = 1.0
    null: float = 0.0
    decay: float = 1.0

    def feedback_weight(self, W: Tensor, state: NoiseState) -> Tensor:
        """Return `F`."""
        return state.F

    def phase(self, W: Tensor, state: NoiseState) -> None:
        """Send noise through the layer, and update `F` from its response."""
        F = state.F
        generator = torch.Generator(W.device).manual_seed(int(state.noise))
        state.noise.add_(1)
        matrix, F_matrix = self.layout.to_matrix(W).to(F.dtype), self.layout.to_matrix(F)
        shape = (matrix.shape[0], self.samples, matrix.shape[2])
        x = torch.randn(shape, generator=generator, device=F.device, dtype=F.dtype)
        y = torch.bmm(x, matrix.transpose(1, 2))
        F.add_(self.rate * self.layout.from_matrix(self.change(x, y, F_matrix)))

    def change(self, x: Tensor, y: Tensor, F: Tensor) -> Tensor:
        """Return `amp y x^T - null y (F^T y)^T - decay F`, the mean over the samples.

        `x` is `(groups, samples, N_in/g)`, `y` and `F` are `(groups, samples, N_out/g)` and
        `(groups, N_out/g, N_in/g)`, with a kernel's positions among the inputs.
        """
        wanted = self.amp * x - self.null * torch.bmm(y, F) if self.null else self.amp * x
        return torch.bmm(y.transpose(1, 2), wanted) / self.samples - self.decay * F


@RULES.register("wm")
class WeightMirror(NoiseRule):
    """`F` correlates a layer's output with the noise at its input, and forgets at the same rate.

    Since the noise is white, `E[y x^T] = W`: `F` follows `W`, with an error that falls with `samples` and
    grows with `rate` and the number of a layer's inputs. But `F` is behind `W` by `1 / rate` phases: where
    `W` moves far in that time, learning is unstable, and wants a higher rate with more samples, or a lower
    learning rate of the optimizer. `feedback_phase(model)` runs a phase; the trainer does after each step,
    or each `train.phase_interval` of them.
    """

    title = "weight mirror"
    formula = "dF = rate (y x^T - F), y = W x, x ~ N(0, 1)"
    source = "Akrout, Wilson, Humphreys, Lillicrap & Tweed 2019"
    cost = "a forward and a weight gradient of `samples` positions per phase"

    def pathway(self, layout: WeightLayout) -> NoisePathway:
        """Return the mirror."""
        return NoisePathway(layout, self.samples, self.rate)


@RULES.register("ia")
class InformationAlignment(NoiseRule):
    """`F` descends the source's sum of three terms, so that `F^T y` keeps what `y` tells of `x`.

    `amp` rewards `x^T F^T y`, `null` punishes `|F^T y|^2 / 2`, `decay` punishes `|F|^2 / 2`. Without
    `null` it is the weight mirror; with it `F` stays bounded however large `W` grows. The source lets `x` be
    the layer's activity or noise; here it is noise, in phases as those of `wm`.
    """

    title = "information alignment"
    formula = "dF = rate (amp y x^T - null y (F^T y)^T - decay F), y = W x, x ~ N(0, 1)"
    source = "Kunin, Nayebi, Sagastuy-Brena, Ganguli, Bloom & Yamins 2020"
    cost = "a forward, an error and a weight gradient of `samples` positions per phase"

    amp: float = Field(1.0, gt=0, allow_inf_nan=False, description="weight of the correlation")
    null: float = Field(0.1, ge=0, allow_inf_nan=False, description="weight of what comes back")
    decay: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of the size of F")

    def pathway(self, layout: WeightLayout) -> NoisePathway:
        """Return the pathway with these weights."""
        return NoisePathway(layout, self.samples, self.rate, self.amp, self.null, self.decay)
