"""Finding and rewriting every use of a learned weight, in modules of every shape."""

import pytest
import torch
from harness import EXACT, relative_error
from torch import nn
from torch.nn import functional

from pfa_convert import UserError, convert, revert
from pfa_convert.verify import forward_difference


def feedback_of(module, name="weight"):
    return getattr(module, f"feedback_of_{name}")


class OwnLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(5, 4))

    def forward(self, x, scale=None):
        y = functional.linear(x, self.mixing)
        return y if scale is None else y * scale


class Standardised(nn.Conv2d):
    def forward(self, x):
        W = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return functional.conv2d(x, W / W.std(dim=(1, 2, 3), keepdim=True), self.bias, padding=1)


class LeafUser(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return leaf(x, self.first.weight, self.second.weight, self.second.bias)


def leaf(x, first, second, bias):
    x = functional.linear(x, first)
    if x.sum() > 1e9:  # data-dependent: torch.fx cannot follow
        x = x * 0
    return functional.linear(torch.relu(x), second, bias)


torch.fx.wrap("leaf")


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.own = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else functional.linear(x, self.own)


def test_a_weight_applied_by_a_function_gets_its_rule():
    model = convert(OwnLinear().double(), "fa")
    (site,) = model.conversion.sites
    assert (site.name, site.kind, site.weight_shape) == ("mixing", "linear()", (5, 4))
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    assert relative_error(x.grad, torch.ones(3, 5).double() @ feedback_of(model, "mixing").F0) <= EXACT


def test_an_optional_argument_may_be_given_or_not():
    plain = OwnLinear()
    model = convert(plain, "fa")
    x = torch.randn(3, 4)
    for arguments in ({}, {"scale": torch.tensor(2.0)}, {"scale": 3.0}):
        assert torch.equal(model(x, **arguments), plain(x, **arguments))
    x.requires_grad_()
    model(x, torch.tensor(2.0)).sum().backward()
    assert relative_error(x.grad, 2 * torch.ones(3, 5) @ feedback_of(model, "mixing").F0) < 1e-6


def test_a_computed_weight_sends_the_error_through_the_same_function_of_the_feedback_weight():
    plain = Standardised(3, 4, 3).double()
    model = convert(nn.Sequential(plain), "pfa", options={"expansion": 3})
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    delta = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    model(x).backward(delta)
    feedback = feedback_of(model[0])
    raw = torch.einsum("om,mi->oi", feedback.B[0], feedback.R.flatten(1)).view_as(plain.weight).detach()
    twin = Standardised(3, 4, 3).double()
    twin.load_state_dict({"weight": raw, "bias": plain.bias})
    through = x.detach().clone().requires_grad_()
    twin(through).backward(delta)
    assert relative_error(x.grad, through.grad) <= EXACT
    # The raw weight learns as ever, and R from the raw weight's gradient: dL/dR = B^T dL/dV.
    plain(x.detach()).backward(delta)
    assert relative_error(model[0].weight.grad, plain.weight.grad) <= EXACT
    expected = feedback.B[0].t() @ plain.weight.grad.flatten(1)
    assert relative_error(feedback.R.grad.flatten(1), expected) <= EXACT


def test_weights_applied_inside_an_untraced_function_are_redirected():
    model = convert(LeafUser().double(), "fa")
    assert [site.name for site in model.conversion.sites] == ["first", "second"]
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    delta = torch.ones(3, 3).double() @ feedback_of(model.second).F0
    delta = delta * (functional.linear(x, model.first.weight) > 0)
    assert relative_error(x.grad, delta @ feedback_of(model.first).F0) <= EXACT


def test_what_cannot_be_traced_is_walked_child_by_child_and_reported():
    model = convert(nn.Sequential(DataDependent(), nn.Linear(4, 2)), "fa")
    assert [site.name for site in model.conversion.sites] == ["0.inner", "1"]
    (left,) = model.conversion.skipped
    assert left.name == "0.own" and left.weight_shape == (4, 4) and "depends on the values" in left.reason


def test_a_weight_used_twice_keeps_one_feedback_state():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = convert(nn.Sequential(first, nn.ReLU(), second), "pfa")
    assert len(model.conversion.sites) == 2
    assert feedback_of(model[0]) is feedback_of(model[2])
    assert len([name for name, _ in model.named_parameters() if name.endswith(".R")]) == 1
    assert model.conversion.feedback_elements == 4 * 40 + 40 * 4


def test_dropout_follows_the_mode():
    plain = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), OwnLinearOf8())
    model = convert(plain, "pfa")
    assert forward_difference(plain, model, torch.randn(4, 8)) == 0
    x = torch.randn(4, 8)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


class OwnLinearOf8(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return functional.dropout(functional.linear(x, self.weight), 0.5, self.training)


NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten()))


@pytest.mark.parametrize(
    ("overrides", "rules"),
    [
        ([{"match": "2.*", "rule": "bp"}], ["pfa", "pfa", "bp"]),
        ([{"match": "re:[01]", "rule": "fa"}], ["fa", "fa", "pfa"]),
        ([{"type": "Conv2d", "kernel_size": 1, "rule": "usf"}], ["pfa", "usf", "usf"]),
        ([{"match": "1", "rule": "kp"}, {"match": "*", "rule": "bp"}], ["bp", "kp", "bp"]),
    ],
)
def test_the_first_override_that_matches_decides(overrides, rules):
    model = convert(NET, "pfa", overrides=overrides)
    assert [site.rule for site in model.conversion.sites] == rules


def test_an_overrides_options_are_laid_over_the_default_ones():
    model = convert(
        NET, options={"expansion": 4}, overrides=[{"match": "1", "options": {"feedback_density": 0.5}}]
    )
    assert model.conversion.sites[1].options == {"expansion": 4, "feedback_density": 0.5}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"match": "layer9", "rule": "bp"}, "matches no site"),
        ({"type": "Conv3d", "rule": "bp"}, "did you mean 'Conv2d'"),
        ({"match": "re:(", "rule": "bp"}, "not a regular expression"),
        ({"match": "0"}, "neither 'rule' nor 'options'"),
        ({"match": "0", "rul": "bp"}, "did you mean 'rule'"),
        ({"rule": "bp"}, "either 'match' or 'type'"),
    ],
)
def test_a_wrong_override_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        convert(NET, overrides=[override])


def test_lazy_layers_are_reported():
    model = convert(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)))
    assert [left.name for left in model.conversion.skipped] == ["0"]
    assert "lazily built" in model.conversion.skipped[0].reason


@pytest.mark.parametrize("make", [OwnLinear, LeafUser, lambda: Standardised(3, 4, 3)])
def test_revert_gives_back_class_forward_and_keys(make):
    plain = make()
    back = revert(convert(plain))
    assert type(back) is type(plain) and back.__dict__.keys() == plain.__dict__.keys()
    assert list(back.state_dict()) == list(plain.state_dict())
