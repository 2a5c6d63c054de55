"""Weights that go through an autograd function of the user's own before a product, as in quantisation."""

import copy

import pytest
import torch
from harness import EXACT, relative_error
from torch import nn
from torch.nn import functional

from pfa_convert import convert, verify


class Signs(torch.autograd.Function):
    """Signs times the mean magnitude; the gradient goes straight through where the weight is small."""

    @staticmethod
    def forward(ctx, weight, factor):
        ctx.save_for_backward(weight)
        return weight.sign() * weight.abs().mean() * factor

    @staticmethod
    def backward(ctx, delta):
        (weight,) = ctx.saved_tensors
        return delta * (weight.abs() < 0.3), None


class Parts(torch.autograd.Function):
    """Two results, and the other way of writing an autograd function."""

    @staticmethod
    def forward(weight, scale):
        return weight.round(), weight * scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, first, second):
        return first + second, None


class Drawn(torch.autograd.Function):
    """Rounding by chance."""

    @staticmethod
    def forward(ctx, weight):
        return (weight + torch.rand_like(weight)).floor()

    @staticmethod
    def backward(ctx, delta):
        return delta


class Applying(torch.autograd.Function):
    """A linear map that hides its product."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, delta):
        x, weight = ctx.saved_tensors
        return delta @ weight, delta.t() @ x


class OfSigns(nn.Linear):
    def forward(self, x):
        return functional.linear(x, Signs.apply(self.weight, 1.5), self.bias)


class OfParts(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.other = nn.Parameter(torch.randn_like(self.weight))
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        first, second = Parts.apply(self.weight, self.scale)
        third, fourth = Parts.apply(self.other, self.scale)
        return functional.linear(x, 2 * first + fourth) + x @ (second - third).t()


class OfDraws(nn.Linear):
    def forward(self, x):
        return functional.linear(x, Drawn.apply(self.weight) + Drawn.apply(self.weight))


class Convolving(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, Signs.apply(self.weight, 0.5), self.bias)


class Hiding(nn.Linear):
    def forward(self, x):
        return Applying.apply(x, self.weight)


MODULES = {
    "signs": lambda: (OfSigns(5, 3), torch.randn(6, 5)),
    "parts": lambda: (OfParts(5, 3), torch.randn(6, 5)),
    "draws": lambda: (OfDraws(5, 3), torch.randn(6, 5)),
    "convolution": lambda: (Convolving(2, 3, 3), torch.randn(2, 2, 5, 5)),
}


def run(module, x):
    """Return the output, dL/dx and the gradients of the Parameters, for the loss `sum(y^3)`."""
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    output = module(x)
    (output**3).sum().backward()
    learned = {n: p.grad for n, p in module.named_parameters() if p.grad is not None and "feedback" not in n}
    return output.detach(), x.grad, learned


@pytest.mark.parametrize("rule", ["fa", "pfa", "kp", "usf"])
@pytest.mark.parametrize("name", MODULES)
def test_the_error_goes_through_the_function_of_the_feedback_weight(name, rule):
    torch.manual_seed(0)
    module, x = MODULES[name]()
    plain, x = module.double(), x.double()
    model = convert(plain, rule)
    # By hand: the output's error through the plain module that holds F for W.
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        for site in model.conversion.sites:
            F = getattr(model, f"feedback_of_{site.weight}").feedback_weight(plain.get_parameter(site.weight))
            twin.get_parameter(site.weight).copy_(F)
    output, below, learned = run(model, x)
    plain_output, plain_below, plain_learned = run(plain, x)
    inputs = x.clone().requires_grad_()
    torch.manual_seed(5)
    (expected,) = torch.autograd.grad(twin(inputs), inputs, 3 * plain_output**2)
    assert torch.equal(output, plain_output)
    assert relative_error(below, expected) <= EXACT
    assert relative_error(below, plain_below) > 1e-3
    assert learned.keys() == plain_learned.keys()
    assert all(torch.equal(learned[weight], plain_learned[weight]) for weight in learned)
    assert verify(model, x).balanced


def test_compiled_it_is_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), convert(OfParts(5, 3), "fa")).double()
    x = torch.randn(6, 4).double()
    results = [run(one, x) for one in (copy.deepcopy(model), torch.compile(model, backend="aot_eager"))]
    assert all(
        relative_error(theirs, ours) <= EXACT for ours, theirs in zip(*(r[:2] for r in results), strict=True)
    )
    assert results[0][2].keys() == {name.removeprefix("_orig_mod.") for name in results[1][2]}


def test_random_numbers_after_it_are_those_of_the_plain_model():
    torch.manual_seed(0)
    module, x = MODULES["draws"]()
    drawn = []
    for one in (module, convert(module, "fa")):
        run(one, x)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_a_function_that_applies_the_weight_itself_is_not_taken_for_a_weight():
    torch.manual_seed(0)
    plain = Hiding(5, 3).double()
    model, x = convert(plain, "fa"), torch.randn(6, 5).double()
    assert torch.equal(run(model, x)[1], run(plain, x)[1])
    (entry,) = verify(model, x).unaccounted
    assert entry.name == "weight"


def test_what_a_function_makes_of_an_activation_is_no_weight():
    class Surrogate(OfSigns):
        def forward(self, x):
            return functional.linear(Signs.apply(x, 1.0), Signs.apply(self.weight, 1.0))

    torch.manual_seed(0)
    plain, x = Surrogate(5, 3).double(), torch.randn(6, 5).double()
    model = convert(plain, "fa")
    F = Signs.forward(_Context(), model.feedback_of_weight.F0, 1.0)
    output, below, _ = run(model, x)
    assert relative_error(below, 3 * output**2 @ F * (x.abs() < 0.3)) <= EXACT


class _Context:
    def save_for_backward(self, *tensors):
        pass


def test_a_plastic_state_that_its_gradient_would_not_reach_is_refused():
    model = convert(OfSigns(5, 3), "pfa", options={"strategy": "fused"})
    with pytest.raises(RuntimeError, match="Signs keeps the gradient of a weight from its plastic feedback"):
        model(torch.randn(2, 5))


def test_nothing_of_a_function_is_kept_after_the_forward():
    import weakref

    model = convert(OfSigns(5, 3), "fa")
    output = model(torch.randn(2, 5))
    watched = weakref.ref(output.grad_fn)
    del output
    assert watched() is None
