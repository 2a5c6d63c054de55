"""A rule and a model of one's own, in one file: feedback weights that are the forward ones, rounded."""

from dataclasses import dataclass

import torch
from torch import nn

from pfa_convert import alignment, convert
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.rules import RULES, Rule


@RULES.register("rounded")
class Rounded(Rule):
    title, cost = "rounded weights", "one pass over the weights per step"
    formula, source = "F = round(W / step) step", "this example"
    step: float = 0.1

    def pathway(self, layout):
        return RoundedPathway(layout, self.step)


@dataclass(frozen=True)
class RoundedPathway(Pathway):
    step: float = 0.1

    def feedback_weight(self, W, state):
        return (W / self.step).round() * self.step


model = convert(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), rule="rounded")
model(torch.randn(8, 64)).square().mean().backward()
print({site: round(value["angle_deg"], 1) for site, value in alignment(model).items()})
