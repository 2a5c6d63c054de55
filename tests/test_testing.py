"""The kit that checks new layers and rules: it accepts what is right, and says what is wrong."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from harness import cases
from recurrent_formulas import cell_reference
from torch import nn
from torch.nn import functional

from pfa_convert import LAYERS, RULES, Rule, UserError
from pfa_convert.feedback.functional import linear
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.testing import check_layer, check_rule, through

CASES = {case.name: case for case in cases()}


class Twice(nn.Module):
    """A layer of a user's own: `y = 2 x W + b` with `W` `(N_in, N_out)`."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return functional.linear(2 * x, self.kernel.t(), self.bias)


@pytest.fixture
def registered():
    """Register forwards of `Twice`, and forget them again."""
    yield lambda forward, **more: LAYERS.register(Twice, **{"weights": ["kernel"], **more})(forward)
    LAYERS._entries.pop(Twice, None)
    LAYERS._sources.pop(Twice, None)


def test_the_page_on_layers_and_rules_of_ones_own_runs():
    page = Path(__file__).parents[1] / "docs" / "extending.md"
    code = page.read_text().partition("```python\n")[2].partition("```")[0]
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=False)
    assert "Scaled" in done.stdout and "2 sites (2 half)" in done.stdout, done.stderr


@pytest.mark.parametrize("name", CASES)
def test_the_layers_of_pytorch_pass(name):
    check_layer(CASES[name].layer, torch.randn(CASES[name].input_shape))


def test_a_layer_of_two_inputs_passes():
    check_layer(nn.Bilinear(3, 4, 5), torch.randn(2, 3), torch.randn(2, 4))


@pytest.mark.parametrize("cell", [nn.LSTMCell(4, 3), nn.GRUCell(4, 3), nn.RNNCell(4, 3)])
def test_a_layer_that_is_not_linear_passes_with_a_reference_and_needs_one(cell):
    hx = torch.randn(2, 3) if not isinstance(cell, nn.LSTMCell) else (torch.randn(2, 3), torch.randn(2, 3))
    check_layer(cell, torch.randn(2, 4), hx, reference=cell_reference)
    with pytest.raises(UserError, match="give check_layer a reference"):
        check_layer(cell, torch.randn(2, 4))


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def attention_reference(layer, F, x):
    packed = (layer.in_proj_weight, F["in_proj_weight"], layer.in_proj_bias)
    pieces = zip(*(tensor.chunk(3) for tensor in packed), strict=True)
    q, k, v = (through(functional.linear, x, W, F_W) + b for W, F_W, b in pieces)
    heads = [t.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for t in (q, k, v)]
    scores = (heads[0] @ heads[1].transpose(-1, -2) / layer.head_dim**0.5).softmax(-1)
    mixed = (scores @ heads[2]).transpose(1, 2).flatten(2)
    out = layer.out_proj
    return through(functional.linear, mixed, out.weight, F["out_proj.weight"]) + out.bias


def test_attention_passes():
    check_layer(SelfAttention(8, 2, batch_first=True), torch.randn(3, 5, 8), reference=attention_reference)


def test_a_layer_of_ones_own_passes(registered):
    def right(layer, kernel, x):
        y = functional.linear(2 * x.detach(), kernel.value.t(), layer.bias)
        F = kernel.value if kernel.feedback is None else kernel.feedback.feedback_weight(kernel.value)
        back = 2 * x @ F.detach()
        return y + (back - back.detach())

    registered(right)
    check_layer(Twice(), torch.randn(3, 5))


def test_a_layer_without_an_entry_is_a_mistake():
    with pytest.raises(UserError, match="Twice has no entry in LAYERS"):
        check_layer(Twice(), torch.randn(3, 5))


WRONG_LAYERS = {
    "the gradient of input 0 is off": lambda layer, W, x: functional.linear(2 * x, W.value.t(), layer.bias),
    "the forward differs": lambda layer, W, x: linear(x, W.value.t(), layer.bias, feedback=None),
    "other gradients": lambda layer, W, x: functional.linear(2 * x, W.value.detach().t(), layer.bias),
}


@pytest.mark.parametrize("complaint", WRONG_LAYERS)
def test_a_wrong_layer_is_told_what_is_wrong(complaint, registered):
    registered(WRONG_LAYERS[complaint])
    with pytest.raises(AssertionError, match=complaint):
        check_layer(Twice(), torch.randn(3, 5))


def test_wrong_names_of_weights_are_told(registered):
    registered(WRONG_LAYERS["the forward differs"], weights=["weight"])
    with pytest.raises(AssertionError, match=r"the sites are \[\], the layer's weights \['weight'\]"):
        check_layer(Twice(), torch.randn(3, 5))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "dfa"])
def test_the_rules_pass(rule):
    check_rule(rule)


def test_a_rule_passes_with_its_formula_and_fails_with_another():
    check_rule("fa", formula=lambda W, state: state["F0"])
    with pytest.raises(AssertionError, match="fa on linear: F is not the formula's"):
        check_rule("fa", formula=lambda W, state: W)


def test_a_rule_whose_feedback_comes_from_the_output_is_not_for_the_kit():
    with pytest.raises(UserError, match="does not stand beside the weight"):
        check_rule("dfa", {"outputs": 3})


@pytest.fixture
def half():
    """A rule of a user's own, with a pathway that a test gives."""

    @dataclass(frozen=True)
    class HalfPathway(Pathway):
        def feedback_weight(self, W, *state):
            return W / 2

    class Half(Rule):
        name, title, formula, source = "half", "half of W", "F = W/2", "a test"
        cost = "none"

        def pathway(self, layout):
            return HalfPathway(layout)

    RULES.register("half")(Half)
    yield HalfPathway
    RULES._entries.pop("half")
    RULES._sources.pop("half")


def test_a_rule_of_ones_own_passes(half):
    check_rule("half", formula=lambda W, state: W / 2)


def test_a_wrong_rule_is_told_what_is_wrong(half):
    calls = []
    half.feedback_weight = lambda self, W, *state: calls.append(W) or W / len(calls)
    with pytest.raises(AssertionError, match="half on linear: F is another one for the same seed"):
        check_rule("half")
    half.feedback_weight = lambda self, W, *state: W if torch.is_grad_enabled() else W.sum(0)
    with pytest.raises(AssertionError, match=r"half on linear: F has the shape \(7,\)"):
        check_rule("half")


def test_a_rule_that_sends_the_error_another_way_than_its_F_is_told(half):
    apply = half.apply
    half.apply = lambda self, operation, x, W, *more: apply(self, operation, 2 * x - x.detach(), W, *more)
    with pytest.raises(AssertionError, match="half on linear: dL/dx is off by"):
        check_rule("half")
