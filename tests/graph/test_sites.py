"""Finding and rewriting every use of a learned weight, in modules of every shape."""

import pytest
import torch
from harness import EXACT, error_below, feedback_of, relative_error
from test_computed_weights import Standardised
from test_untraced import LeafUser
from torch import nn
from torch.nn import functional

from pfa_convert import convert, revert
from pfa_convert.comparison import forward_difference


class OwnLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(5, 4))

    def forward(self, x, scale=None):
        y = functional.linear(x, self.mixing)
        return y if scale is None else y * scale


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


@pytest.mark.parametrize("make", [OwnLinear, LeafUser, lambda: Standardised(3, 4, 3)])
def test_revert_gives_back_class_forward_and_keys(make):
    plain = make()
    back = revert(convert(plain))
    assert type(back) is type(plain) and back.__dict__.keys() == plain.__dict__.keys()
    assert list(back.state_dict()) == list(plain.state_dict())


class WeightsInAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = nn.ParameterList([torch.randn(4, 4) for _ in range(2)])

    def forward(self, x):
        for weight in self.steps:
            x = functional.linear(x, weight)
        return x


def test_parameters_in_a_list():
    plain = WeightsInAList().double()
    model = convert(plain, "fa")
    assert [site.name for site in model.conversion.sites] == ["steps.0", "steps.1"]
    x = torch.randn(3, 4, dtype=torch.float64)
    first, second = feedback_of(model.steps, "0").F0, feedback_of(model.steps, "1").F0
    assert relative_error(error_below(model, x), torch.ones(3, 4).double() @ second @ first) <= EXACT
    assert list(revert(model).state_dict()) == ["steps.0", "steps.1"]


class Functional2d(nn.Module):
    """Convolutions called as functions, with the arguments given in different ways."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 2, 3, 3))
        self.b = nn.Parameter(torch.randn(6, 2, 2, 2))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x):
        x = functional.conv2d(x, self.a, self.bias, 1, "same", 1, 2)
        return functional.conv_transpose2d(x, weight=self.b, stride=(2, 1), groups=3, padding=1)


def test_convolutions_as_functions_on_own_parameters():
    plain = Functional2d().double()
    model = convert(plain, "pfa", options={"expansion": 2, "strategy": "fused"})
    assert [(site.name, site.kind) for site in model.conversion.sites] == [
        ("a", "conv2d()"),
        ("b", "conv_transpose2d()"),
    ]
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    assert torch.equal(model(x), plain(x))
    twin = Functional2d().double()
    with torch.no_grad():
        for name in ("a", "b"):
            feedback = feedback_of(model, name)
            twin.get_parameter(name).copy_(feedback.feedback_weight(model.get_parameter(name)))
    # Both are linear, so the error that comes out below depends on the feedback weights alone.
    assert relative_error(error_below(model, x), error_below(twin, x)) <= EXACT
    assert feedback_of(model, "a").B.shape == (2, 3, 6) and feedback_of(model, "b").B.shape == (3, 2, 4)


@pytest.mark.parametrize("convolution", [True, False])
def test_every_argument_may_be_given_by_keyword(convolution):
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.randn(3, 4, 1, 1) if convolution else torch.randn(3, 4))

        def forward(self, x):
            apply = functional.conv2d if convolution else functional.linear
            return apply(input=x, weight=self.own)

    plain = Keywords()
    x = torch.randn(2, 4, 5, 5) if convolution else torch.randn(2, 4)
    assert torch.equal(convert(plain, "fa")(x), plain(x))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, x, *, mask=None, flip=False):
        y = functional.linear(x, self.mixing) * self.scale
        if mask is not None:
            y = y.masked_fill(mask, 0.0)
        return y.flip(0) if flip else y


class Caller(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Masked()

    def forward(self, x, mask=None):
        return self.inner(x, mask=mask, flip=True) + self.inner(x)


def test_every_kind_of_call_is_rewritten():
    plain = Caller().double()
    model = convert(plain, "fa")
    assert len(model.conversion.sites) == 1 and not model.conversion.skipped
    x, mask = torch.randn(3, 4).double(), torch.rand(3, 4) > 0.5
    F0 = feedback_of(model.inner, "mixing").F0
    for arguments in ((), (mask,), (None,)):
        assert torch.equal(model(x, *arguments), plain(x, *arguments))
        given = x.clone().requires_grad_()
        model(given, *arguments).sum().backward()
        masked = ~mask if arguments and arguments[0] is not None else torch.ones(3, 4)
        assert relative_error(given.grad, 3 * (masked.double() + 1) @ F0) <= EXACT


def test_buffers_are_read_at_run_time():
    model = convert(Masked(), "fa")
    x = torch.randn(3, 4)
    before = model(x)
    model.scale.mul_(2)
    assert torch.equal(model(x), before * 2)
    assert model.double()(x.double()).dtype == torch.float64


def test_hooks_keep_working():
    plain = nn.Sequential(nn.Linear(4, 4), OwnLinear())
    calls = []
    for layer in plain:
        layer.register_forward_hook(lambda module, args, output: calls.append(type(module).__name__))
    convert(plain, "fa")(torch.randn(2, 4)).sum().backward()
    assert len(calls) == 2
