"""torch.nn.MultiheadAttention whose packed projection is parametrized, with the formula written out."""

import copy

import pytest
import torch
from handed import linear
from harness import EXACT, relative_error
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

from pfa_convert import convert, couple, revert, verify
from pfa_convert.errors import UserError
from pfa_convert.feedback.finding import feedback_weights

WIDTH, HEADS = 8, 2
PARAMETRIZED = {
    "orthogonal": lambda layer: orthogonal(layer, "in_proj_weight"),
    "weight norm": lambda layer: weight_norm(layer, "in_proj_weight"),
    "orthogonal, of the output too": lambda layer: orthogonal(
        orthogonal(layer, "in_proj_weight").out_proj, orthogonal_map="cayley"
    ),
}


class Attention(nn.Module):
    def __init__(self, parametrize):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS)
        parametrize(self.attention)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def computed(model, name, raw):
    """Return `g(raw)`, which the parametrization called `name` makes of its raw weight."""
    holder = model.attention.out_proj if name == "out_proj" else model.attention
    chain = holder.parametrizations["weight" if name == "out_proj" else name]
    if chain.is_tensor:
        return chain[0](raw)
    return chain.original0 * raw / raw.norm(dim=1, keepdim=True)


def formula(model, x, F):
    """Attention with each projection's error sent through `F`; by plain autograd."""
    layer = model.attention
    q, k, v = (linear(x, *F["in_proj_weight"]) + layer.in_proj_bias).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in (q, k, v))
    scores = torch.einsum("tnhd,snhd->nhts", q, k) / (WIDTH // HEADS) ** 0.5
    mixed = torch.einsum("nhts,snhd->tnhd", scores.softmax(-1), v).flatten(2)
    return linear(mixed, *F["out_proj"]) + layer.out_proj.bias


def given(name):
    torch.manual_seed(0)
    return Attention(PARAMETRIZED[name]).double(), torch.randn(3, 5, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("rule", ["fa", "kp", "pfa", "pfa-o", "usf"])
@pytest.mark.parametrize("name", PARAMETRIZED)
def test_the_error_goes_through_the_same_function_of_the_feedback_weight(name, rule):
    plain, x = given(name)
    model = convert(plain, rule, strict=True)
    F = {}
    for path, raw, feedback in feedback_weights(model):
        own = "out_proj" if "out_proj" in path else "in_proj_weight"
        target = plain.get_parameter(path)
        F_raw = feedback.feedback_weight(raw).detach()
        if "parametrizations" in path:
            F[own] = computed(plain, own, target), computed(plain, own, F_raw)
        else:
            F[own] = target, F_raw
    assert F.keys() == {"in_proj_weight", "out_proj"}
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [model(inputs[0]), formula(plain, inputs[1], F)]
    for output in outputs:
        (output**3).sum().backward()
    assert relative_error(*outputs) <= EXACT
    assert relative_error(inputs[0].grad, inputs[1].grad) <= EXACT
    learned = dict(model.named_parameters())
    for path, parameter in plain.named_parameters():
        assert relative_error(learned[path].grad, parameter.grad) <= EXACT, path
    assert verify(model, x).balanced


def test_a_plastic_state_learns_as_the_raw_weight_does():
    plain, x = given("orthogonal")
    model = convert(plain, "pfa", options={"strategy": "explicit"})
    model(x).pow(3).sum().backward()
    for _, raw, feedback in feedback_weights(model):
        expected = feedback.B.mT @ raw.grad
        assert relative_error(feedback.R.grad, expected.reshape(feedback.R.shape)) <= EXACT


def test_it_is_coupled_and_reverted():
    plain, x = given("orthogonal")
    model = convert(copy.deepcopy(plain), "kp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    couple(model, optimizer)
    model(x).pow(2).sum().backward()
    optimizer.step()
    trained = model(x)
    back = revert(model)
    assert torch.equal(back(x), trained) and not torch.equal(back(x), plain(x))
    assert not any("feedback" in name for name in back.state_dict())


class Joined(nn.Module):
    """Puts a weight together of two parts, neither of which has its shape."""

    def forward(self, first, second):
        return torch.cat([first, second])

    def right_inverse(self, W):
        return W[:WIDTH], W[WIDTH:]


def test_parts_without_the_shape_of_the_weight_are_named():
    plain = Attention(lambda layer: register_parametrization(layer, "in_proj_weight", Joined()))
    with pytest.raises(UserError, match="from no Parameter of its shape"):
        convert(plain, "fa", strict=True)


def test_a_spectral_norm_is_named():
    plain = Attention(lambda layer: spectral_norm(layer, "in_proj_weight"))
    report = convert(plain, "fa").conversion
    assert [site.weight for site in report.sites] == ["attention.out_proj.weight"]
    assert "spectral norm" in report.skipped[0].reason
    with pytest.raises(UserError, match="spectral norm"):
        convert(plain, "fa", strict=True)
    model, x = convert(plain, "fa"), torch.randn(3, 5, WIDTH)
    assert verify(model, x).balanced
