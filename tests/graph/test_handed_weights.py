"""Weights that a module hands to a child, which applies them or makes another weight of them."""

import pytest
import torch
from handed import (
    MODELS,
    Both,
    Checkpointed,
    Layers,
    Listed,
    Named,
    OfCheckpoints,
    Quantised,
    QuantisedForHead,
    Rotated,
    Tied,
)
from harness import EXACT, relative_error
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pfa_convert import convert, verify


def gradients(function, model, x):
    """Return the output, dL/dx (of a float) and the gradients of the Parameters, for the loss `sum(y^3)`."""
    model.zero_grad()
    x = x.clone().requires_grad_(x.is_floating_point())
    output = function(x)
    (output**3).sum().backward()
    learned = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and "feedback" not in n}
    return output.detach(), {"x": x.grad} | learned if x.requires_grad else learned


def assert_is_the_formula(plain, rule, **settings):
    """Compare a converted module with its formula, into which each site's `F` is put."""
    plain, x = plain.double(), plain.x
    x = x.double() if x.is_floating_point() else x
    model = convert(plain, rule, **settings)
    assert model.conversion.skipped == ()
    F = {}
    for site in model.conversion.sites:
        holder, _, name = site.weight.rpartition(".")
        weight = plain.get_parameter(site.weight)
        feedback = getattr(model.get_submodule(holder), f"feedback_of_{name}")
        F[site.weight] = feedback.feedback_weight(weight).detach()
        assert feedback.pathway.layout.shape == weight.shape
    output, learned = gradients(model, model, x)
    assert torch.equal(output, plain(x))
    expected_output, expected = gradients(lambda x: plain.formula(plain, x, F), plain, x)
    assert relative_error(output, expected_output) <= EXACT
    assert learned.keys() == expected.keys()
    for name in expected:
        assert relative_error(learned[name], expected[name]) <= EXACT, name
    assert verify(model, x).balanced
    return model


@pytest.mark.parametrize("rule", ["fa", "kp", "pfa", "pfa-o", "usf"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_error_goes_through_the_feedback_weight(kind, rule):
    assert_is_the_formula(kind(), rule)


def assert_plastic_states_learn(model):
    """`dL/dR = B^T dL/dW`, of the weight itself, whatever was computed from it."""
    for site in model.conversion.sites:
        holder, _, name = site.weight.rpartition(".")
        state = getattr(model.get_submodule(holder), f"feedback_of_{name}")
        expected = state.B.mT @ model.get_parameter(site.weight).grad
        assert relative_error(state.R.grad, expected.reshape(state.R.shape)) <= EXACT


@pytest.mark.parametrize("strategy", ["fused", "explicit"])
@pytest.mark.parametrize("kind", [Tied, Layers, Both, Checkpointed, OfCheckpoints, Quantised])
def test_the_plastic_state_of_a_handed_weight_learns_as_that_of_a_layer(kind, strategy):
    assert_plastic_states_learn(assert_is_the_formula(kind(), "pfa", options={"strategy": strategy}))


@pytest.mark.parametrize("kind", [Both, Layers, Quantised, Rotated])
def test_compiled_it_is_the_same(kind):
    torch.manual_seed(0)
    model = convert(kind().double(), "fa")
    x = model.x.double()
    expected = gradients(model, model, x)
    compiled = torch.compile(model, backend="aot_eager")
    output, learned = gradients(compiled, model, x)
    assert relative_error(output, expected[0]) <= EXACT
    assert all(relative_error(learned[name], expected[1][name]) <= EXACT for name in expected[1])


def test_direct_feedback_of_a_handed_weight():
    plain = QuantisedForHead().double()
    model, x = convert(plain, "dfa", options={"outputs": 3}), plain.x.double().requires_grad_()
    assert [site.rule for site in model.conversion.sites] == ["dfa"]
    output = model(x)
    (output**3).sum().backward()
    assert relative_error(x.grad, 3 * output**2 @ model.feedback_of_weight.F) <= EXACT
    expected = gradients(plain, plain, x.detach())[1]
    assert torch.equal(model.quantise.step.grad, expected["quantise.step"])
    assert relative_error(model.weight.grad, expected["weight"]) <= EXACT


def sites(model):
    return [(site.weight, site.kind, site.owner) for site in convert(model, "fa").conversion.sites]


def test_who_applies_it_by_what():
    assert sites(Tied()) == [("mix.weight", "Linear", "mix"), ("embed.weight", "matmul()", "")]
    assert sites(Named()) == [("weight", "einsum()", "")]
    assert sites(Quantised()) == [("weight", "linear()", "")]
    assert sites(Listed())[0] == ("weights.0", "Experts()", "")


def test_the_layout_is_that_of_the_product_in_the_child():
    class Grouped(nn.Module):
        def forward(self, x, w):
            return functional.conv_transpose2d(x, w, groups=2)

    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.child = Grouped()

        def forward(self, x):
            return self.child(x, self.weight)

    layout = convert(Parent(), "fa").feedback_of_weight.pathway.layout
    assert (layout.groups, layout.transposed) == (2, True)


def test_what_else_a_child_does_with_it_is_said():
    class Adding(nn.Module):
        def forward(self, x, table, w):
            with torch.no_grad():
                x = x + x @ w
            return x + table

    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 5))
            self.weight = nn.Parameter(torch.randn(5, 5))
            self.child = Adding()

        def forward(self, x):
            return self.child(x, self.table, self.weight)

    report = convert(Parent(), "fa").conversion
    assert report.sites == ()
    assert {other.name: other.use for other in report.others} == {
        "table": "added",
        "weight": "applied without gradients",
    }


@pytest.mark.parametrize("inside", [False, True])
def test_a_plastic_state_of_a_weight_in_a_method_and_in_a_checkpoint(inside):
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 5))

        def forward(self, x):
            x = torch.tanh(self.product(x))
            return checkpoint(self.product, x, use_reentrant=False) if inside else self.product(x)

        def product(self, x):
            return x @ self.weight.t()

    torch.manual_seed(0)
    model, x = convert(Module().double(), "pfa", options={"strategy": "fused"}), torch.randn(3, 5).double()
    gradients(model, model, x)
    assert_plastic_states_learn(model)


@pytest.mark.parametrize("own", [False, True])
def test_a_weight_handed_through_reentrant_checkpointing_is_refused(own):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.U = nn.Parameter(torch.randn(4, 4)) if own else None

        def forward(self, x, W):
            return (x @ self.U if own else x) @ W.t()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.W, self.head = nn.Parameter(torch.randn(3, 4)), Head()

        def forward(self, x):
            return checkpoint(self.head, x, self.W, use_reentrant=True)

    model = convert(Model(), "fa")
    assert {site.weight for site in model.conversion.sites} == ({"W", "head.U"} if own else {"W"})
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        model(torch.randn(2, 4, requires_grad=True))
