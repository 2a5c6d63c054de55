"""Products whose operands broadcast, or lack a dimension: every rule is the ordinary formula with its F."""

import copy

import pytest
import torch
from harness import EXACT, relative_error
from test_forward_is_the_users import module, parameter
from test_products import gradients
from torch.nn import functional

from pfa_convert import convert
from pfa_convert.alignment import feedback_of

RULES = {
    "fa": {},
    "usf": {},
    "kp": {},
    "pfa": {"expansion": 3},
    "pfa-o": {},
    "pfa explicit": {"expansion": 2, "strategy": "explicit"},
}


def right(s, x):
    return x @ s.W


def left(s, x):
    return s.W @ x


SHAPES = {
    "a stack @ a vector's right": (right, (4, 3, 2), (3,)),
    "a stack @ a vector": (left, (4, 2, 3), (3,)),
    "a matrix @ a vector": (left, (2, 3), (3,)),
    "a stack that repeats for its second dimension": (right, (2, 1, 3, 2), (2, 2, 2, 3)),
    "the same on the left": (left, (2, 1, 2, 3), (2, 2, 3, 2)),
    "a stack beside a batch": (right, (5, 1, 3, 2), (5, 4, 2, 3)),
    "a stack with more dimensions than the input": (right, (2, 3, 4, 3), (5, 4)),
    "the same, on the left": (left, (2, 3, 4, 5), (5, 3)),
    "an input that repeats": (right, (2, 3, 4, 3), (3, 7, 4)),
    "a stack of one": (right, (1, 4, 3), (6, 5, 4)),
    "a batch over the stack": (left, (2, 3, 4), (5, 2, 4, 3)),
    "many rows": (right, (2, 1, 3, 2), (2, 3, 40, 3)),
    "many columns": (left, (2, 1, 2, 3), (2, 3, 3, 40)),
    "linear with a vector": (lambda s, x: functional.linear(x, s.W), (4,), (2, 3, 4)),
    "linear of vectors": (lambda s, x: functional.linear(x, s.W), (4,), (4,)),
}


def assert_ordinary_formula(model, plain, x):
    """The error below is that of the plain model with F in place of W; all else is the plain one's."""
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        twin.W.copy_(feedback_of(model, "W").feedback_weight(plain.W))
    (output, below, ours), (plain_output, _, theirs) = gradients(model, x), gradients(plain, x)
    assert torch.equal(output, plain_output)
    assert relative_error(below, gradients(twin, x)[1]) <= EXACT
    assert relative_error(ours["W"], theirs["W"]) <= EXACT


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SHAPES)
def test_every_rule_is_the_ordinary_formula_with_its_F(name, rule):
    torch.manual_seed(0)
    forward, weight, size = SHAPES[name]
    plain, x = module(forward, W=parameter(*weight)).double(), torch.randn(size, dtype=torch.float64)
    model = convert(plain, rule.split()[0], options=RULES[rule])
    assert [site.weight for site in model.conversion.sites] == ["W"]
    assert_ordinary_formula(model, plain, x)


GROUPED = {
    "depthwise": (lambda s, x: functional.conv1d(x, s.W, padding=1, groups=x.shape[1]), (8, 1, 3)),
    "depthwise, two outputs each": (
        lambda s, x: functional.conv1d(x, s.W, padding=1, groups=x.shape[1]),
        (16, 1, 3),
    ),
    "grouped": (lambda s, x: functional.conv1d(x, s.W, padding=1, groups=x.shape[1] // 4), (6, 4, 3)),
    "transposed": (
        lambda s, x: functional.conv_transpose1d(x, s.W, padding=1, groups=x.size(1) // 2),
        (8, 3, 3),
    ),
}


@pytest.mark.parametrize("batch", [1, 40], ids=["small", "large"])
@pytest.mark.parametrize("rule", ["fa", "pfa", "kp", "pfa explicit"])
@pytest.mark.parametrize("name", GROUPED)
def test_groups_that_a_forward_computes_leave_one_formula_for_every_size_of_batch(name, rule, batch):
    torch.manual_seed(0)
    forward, weight = GROUPED[name]
    plain, x = module(forward, W=parameter(*weight)).double(), torch.randn(batch, 8, 9).double()
    assert_ordinary_formula(convert(plain, rule.split()[0], options=RULES[rule]), plain, x)


@pytest.mark.parametrize("name", ["depthwise", "depthwise, two outputs each", "grouped"])
def test_outputs_stay_apart_where_the_forward_computes_which_belong_together(name):
    forward, weight = GROUPED[name]
    model = convert(module(forward, W=parameter(*weight)), "pfa")
    assert feedback_of(model, "W").G.shape == (weight[0], 1, 1)
