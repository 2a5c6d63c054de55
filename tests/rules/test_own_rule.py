"""A rule of a user's own is one file: its class, and nothing that names it anywhere else."""

import sys

import pytest
import torch
from harness import EXACT, relative_error
from torch import nn
from training.runs import call

from pfa_convert import convert, couple, inspect, revert, verify
from pfa_convert.testing import check_rule

RULES = """
from typing import Any, ClassVar, NamedTuple
from pfa_convert.feedback.plastic import PlasticPathway
from pfa_convert.rules.base import PlasticRule, Rule
from pfa_convert.rules.fixed import FixedPathway, FixedState

class TwiceState(NamedTuple):
    P: Any

class TwicePathway(PlasticPathway):
    state_type: ClassVar[Any] = TwiceState
    plastic: ClassVar[str] = "P"
    def feedback_weight(self, W, state): return 2 * state.P
    def change(self, dW, state): return dW / 2

class Twice(PlasticRule):
    title, formula, source, cost = "twice a half", "F = 2 P, dP = dW / 2", "this test", "nothing"
    def pathway(self, layout): return TwicePathway(layout)
    def initial_state(self, layout, draw): return TwiceState(draw.uniform(layout.shape, 0.1))

class OnlyWide(Rule):
    title, formula, source, cost = "only wide", "F = F0 where N_out > 4", "this test", "nothing"
    def pathway(self, layout): return FixedPathway(layout) if layout.outputs > 4 else None
    def initial_state(self, layout, draw): return FixedState(draw.uniform(layout.shape, 1.0))
"""


@pytest.fixture(autouse=True)
def own_file(tmp_path, monkeypatch):
    (tmp_path / "rules_of_mine.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("rules_of_mine", None)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def test_it_converts_couples_and_forgets_by_the_closed_form():
    model = convert(net(), "rules_of_mine:Twice")
    assert model.conversion.counts() == {"rules_of_mine:Twice": 2}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    assert couple(model, optimizer).strategy == {"0.weight": "collapsed", "2.weight": "collapsed"}
    W, F = model[0].weight.detach().clone(), model[0].feedback_of_weight.feedback_weight(model[0].weight)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 6, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    now = model[0].feedback_of_weight.feedback_weight(model[0].weight)
    expected = model[0].weight.detach() + (1 - 0.1 * 0.5) ** 3 * (F - W)
    assert relative_error(now, expected) <= EXACT
    left = (now - model[0].weight).norm() / now.norm()
    assert inspect(model)["0"].share_of_start == pytest.approx(left.item(), rel=1e-9)


def test_the_check_of_rules_takes_it():
    check_rule("rules_of_mine:Twice")


def test_the_commands_know_it_by_its_file():
    explained = call("rules", "rules_of_mine:Twice")
    assert explained.code == 0 and "F = 2 P, dP = dW / 2" in explained.printed
    assert "start_norm" in explained.printed
    converted = call("paper/mlp", "--rule", "rules_of_mine:Twice")
    assert converted.code == 0 and "3 sites converted (3 rules_of_mine:Twice)" in converted.printed


def test_a_weight_that_a_rule_leaves_alone_is_a_site_without_feedback():
    plain = net()
    model = convert(plain, "rules_of_mine:OnlyWide")
    found = [(site.name, site.strategy, site.feedback_elements) for site in model.conversion.sites]
    assert found == [("0", "fixed", 30), ("2", "native", 0)] and not model.conversion.skipped
    x = torch.randn(2, 6, dtype=torch.float64)
    account = verify(model, x)
    assert account.balanced and {entry.status for entry in account.entries} == {"site"}
    assert list(revert(model).state_dict()) == list(plain.state_dict())
