"""Layers whose weight is computed by torch.nn.utils.parametrizations, against the formulas written out."""

import copy

import pytest
import torch
from harness import EXACT, relative_error
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import cached, register_parametrization

from pfa_convert import convert, couple, revert, strip_feedback, verify
from pfa_convert.comparison import forward_difference


class Halve(nn.Module):
    def forward(self, V):
        return V / 2

    def right_inverse(self, W):
        return W * 2


class Symmetric(nn.Module):
    def forward(self, V):
        return V.triu() + V.triu(1).transpose(-1, -2)

    def right_inverse(self, W):
        return W


def own_chain(layer):
    register_parametrization(layer, "weight", Symmetric())
    return register_parametrization(layer, "weight", Halve())


LAYERS = {
    "weight norm": lambda: weight_norm(nn.Linear(5, 4)),
    "weight norm of a convolution": lambda: weight_norm(nn.Conv2d(4, 6, 3, groups=2, padding=1)),
    "spectral norm": lambda: spectral_norm(nn.Linear(5, 4)),
    "spectral norm of a convolution": lambda: spectral_norm(nn.Conv2d(4, 6, 3)),
    "a chain of one's own": lambda: own_chain(nn.Linear(4, 4)),
    "orthogonal": lambda: orthogonal(nn.Linear(5, 4), orthogonal_map="cayley"),
}


@pytest.fixture(params=LAYERS)
def problem(request):
    torch.manual_seed(0)
    plain = nn.Sequential(LAYERS[request.param]().double())
    shape = (3, 4, 6, 6) if isinstance(plain[0], nn.Conv2d) else (3, plain[0].in_features)
    return plain, torch.randn(shape, dtype=torch.float64)


def raw(layer):
    chain = layer.parametrizations.weight
    return chain.original if chain.is_tensor else chain.original1


def gradients(model, x):
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    return x.grad, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_layer_is_a_site_and_its_forward_is_unchanged(problem):
    plain, x = problem
    model = convert(plain, "fa")
    assert [site.name for site in model.conversion.sites] == ["0"] and not model.conversion.skipped
    assert forward_difference(plain, model, x) == 0


def test_F_equal_to_V_is_backpropagation(problem):
    plain, x = problem
    model = convert(plain, "fa")
    with torch.no_grad():
        model[0].feedback_of_weight.F0.copy_(raw(model[0]))
    (below, ours), (below_plain, theirs) = gradients(model, x), gradients(plain, x)
    assert relative_error(below, below_plain) <= EXACT
    assert all(relative_error(ours[name], theirs[name]) <= EXACT for name in theirs)


def cayley(F):
    """The orthogonal parametrization by Cayley's map of the lower triangle, as PyTorch documents it."""
    rows, columns = max(F.shape), min(F.shape)
    tall = (F if F.shape[0] >= F.shape[1] else F.t()).tril()
    square = torch.cat([tall, tall.new_zeros(rows, rows - columns)], dim=1)
    A = square - square.t()
    identity = torch.eye(rows, dtype=F.dtype)
    Q = (torch.linalg.inv(identity - A / 2) @ (identity + A / 2))[:, :columns]
    return Q, F.shape[0] < F.shape[1]


def computed(layer, F):
    """The feedback weight by the definition of each parametrization, written out."""
    chain = layer.parametrizations.weight
    kind = type(chain[0]).__name__
    if kind == "_WeightNorm":
        norms = F.flatten(1).norm(dim=1).view(-1, *[1] * (F.dim() - 1))
        return chain.original0 * F / norms
    if kind == "_SpectralNorm":
        return F / (chain[0]._u @ chain.original.flatten(1) @ chain[0]._v)
    if kind == "Symmetric":
        return (F.triu() + F.triu(1).t()) / 2
    Q, flat = cayley(F)
    if hasattr(chain[0], "base"):
        Q = chain[0].base @ Q
    return Q.t() if flat else Q


def test_the_error_goes_through_the_computed_feedback_weight(problem):
    plain, x = problem
    model = convert(plain, "fa")
    below, _ = gradients(model, x)
    layer = model[0]
    F = computed(layer, layer.feedback_of_weight.F0).detach()
    with torch.no_grad():
        delta = 2 * model.eval()(x)
    if isinstance(layer, nn.Conv2d):
        expected = torch.nn.grad.conv2d_input(x.shape, F, delta, padding=layer.padding, groups=layer.groups)
    else:
        expected = delta @ F
    assert relative_error(below, expected) <= EXACT


def test_a_plastic_state_learns_from_the_raw_weights_gradient(problem):
    plain, x = problem
    model = convert(plain, "pfa", options={"expansion": 2, "strategy": "fused"})
    gradients(model, x)
    layer = model[0]
    B, R = layer.feedback_of_weight.B, layer.feedback_of_weight.R
    matrix = raw(layer).grad.reshape(B.shape[0], B.shape[1], -1)
    assert relative_error(R.grad.reshape(B.shape[0], B.shape[2], -1), B.transpose(1, 2) @ matrix) <= EXACT


def test_the_collapsed_form_follows_the_raw_weight(problem):
    plain, x = problem
    options = {"expansion": 2, "law": "uniform"}
    models = [convert(plain, "pfa", options={**options, "strategy": s}) for s in ("fused", "collapsed")]
    for model, coupled in zip(models, (False, True), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
        if coupled:
            assert set(couple(model, optimizer).strategy.values()) == {"collapsed"}
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    ours, theirs = [gradients(model, x)[0] for model in models]
    assert relative_error(ours, theirs) <= 1e-10


def test_the_plain_layer_comes_back(problem):
    plain, _ = problem
    before = copy.deepcopy(plain.state_dict())
    model = convert(plain, "pfa")
    assert strip_feedback(model).keys() == before.keys()
    back = revert(model).state_dict()
    assert all(torch.equal(back[name], before[name]) for name in before)


def test_the_weight_can_still_be_assigned(problem):
    plain, x = problem
    model = convert(plain, "pfa")
    weight = torch.rand_like(raw(plain[0]))
    if hasattr(plain[0].parametrizations.weight[0], "base"):
        weight = torch.linalg.qr(weight.t())[0].t()
    for layer in (plain[0], model[0]):
        torch.manual_seed(0)
        layer.weight = weight.clone()
    assert forward_difference(plain, model, x) == 0


def test_within_cached_the_weight_is_computed_once_as_in_the_plain_model(problem):
    plain, x = problem
    model, single = convert(plain, "fa"), convert(plain, "fa")
    with torch.no_grad():
        model[0].feedback_of_weight.F0.mul_(2)
        single[0].feedback_of_weight.F0.mul_(2)

    def twice(one):
        once = x.clone().requires_grad_()
        with cached():
            outputs = one(once), one(once)
            weight = one[0].weight
            sum(output.square().sum() for output in outputs).backward()
        return outputs, weight, once.grad

    (first, second), weight, below = twice(model)
    (plain_first, plain_second), plain_weight, _ = twice(plain)
    assert torch.equal(first, plain_first) and torch.equal(second, plain_second)
    assert torch.equal(weight, plain_weight)
    assert relative_error(raw(model[0]).grad, raw(plain[0]).grad) <= EXACT
    once, _ = gradients(single, x)
    assert relative_error(below, 2 * once) <= EXACT
    assert all(map(torch.equal, model[0].parametrizations.buffers(), plain.buffers()))


class LowRank(nn.Module):
    def forward(self, U, V):
        return U @ V

    def right_inverse(self, W):
        return W[:, :2].clone(), W[:2].clone()


class OwnParameter(nn.Module):
    """Applies a parametrized Parameter of its own, of another name than `weight`."""

    def __init__(self, parametrization):
        super().__init__()
        self.A = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))
        register_parametrization(self, "A", parametrization)

    def forward(self, x):
        return x @ self.A


def test_a_parametrized_parameter_of_ones_own_is_a_site():
    plain, x = OwnParameter(Symmetric()), torch.randn(3, 4, dtype=torch.float64)
    model = convert(plain, "fa", strict=True)
    assert [site.name for site in model.conversion.sites] == ["A"]
    below, ours = gradients(model, x)
    F = Symmetric()(model.feedback_of_A.F0)
    delta = 2 * plain(x)
    assert relative_error(below, delta @ F.t()) <= EXACT
    _, theirs = gradients(plain, x)
    assert relative_error(ours["parametrizations.A.original"], theirs["parametrizations.A.original"]) <= EXACT
    assert verify(model, x).balanced


def test_the_factors_of_a_parametrized_parameter_are_named():
    model = convert(OwnParameter(LowRank()), "fa")
    assert not model.conversion.sites
    assert [skipped.name for skipped in model.conversion.skipped] == [
        "parametrizations.A.original0",
        "parametrizations.A.original1",
    ]
