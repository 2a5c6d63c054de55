"""torch.nn.MultiheadAttention, whose function applies three projections at once."""

import copy

import pytest
import torch
from handed import sent
from harness import EXACT, feedback_of, relative_error
from torch import nn
from torch.nn import functional

from pfa_convert import convert, verify
from pfa_convert.comparison import forward_difference

ATTENTIONS = [
    ({}, "self"),
    ({"batch_first": True}, "self"),
    ({"batch_first": True, "bias": False}, "memory"),
    ({"batch_first": True, "add_bias_kv": True, "add_zero_attn": True}, "three"),
    ({"kdim": 6, "vdim": 10}, "other sizes"),
]


def attention_inputs(kind):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(3, 3, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    if kind == "other sizes":
        return q, k[..., :6], torch.cat([v, v], dim=-1)[..., :10]
    return {"self": (q, q, q), "memory": (q, k, k), "three": (q, k, v)}[kind]


@pytest.mark.parametrize(("arguments", "kind"), ATTENTIONS, ids=str)
@pytest.mark.parametrize("rule", ["bp", "fa", "kp"])
def test_multi_head_attention_sends_its_error_through_every_projections_feedback_weight(
    arguments, kind, rule
):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, **arguments).double()
    model = convert(plain, rule, options={"strategy": "explicit"} if rule == "bp" else {})
    assert len(model.conversion.sites) == (4 if kind == "other sizes" else 2) and not model.conversion.skipped
    results = []
    for attention in (model, plain):
        inputs = [x.clone().requires_grad_() for x in attention_inputs(kind)[:1]]
        q, k, v = attention_inputs(kind)
        q = inputs[0]
        k = q if kind == "self" else k
        v = q if kind == "self" else k if kind == "memory" else v
        output, weights = attention(q, k, v)
        attention.zero_grad()
        output.square().sum().backward()
        results.append((output, weights, q.grad, {n: p.grad for n, p in attention.named_parameters()}))
    (output, weights, dq, gradients), (plain_output, plain_weights, plain_dq, plain_gradients) = results
    assert torch.equal(output, plain_output) and torch.equal(weights, plain_weights)
    assert relative_error(gradients["out_proj.weight"], plain_gradients["out_proj.weight"]) <= EXACT
    if rule == "bp":
        assert relative_error(dq, plain_dq) <= EXACT
        assert all(relative_error(gradients[n], g) <= EXACT for n, g in plain_gradients.items())
    else:
        assert relative_error(dq, plain_dq) > 0.1
    if rule == "kp":
        for name in plain_gradients:
            holder, _, parameter = name.rpartition(".")
            feedback = f"{holder}.feedback_of_{parameter}.F".removeprefix(".")
            if feedback in gradients:
                assert relative_error(gradients[feedback], gradients[name]) <= EXACT


def test_attention_without_gradients_may_take_pytorchs_fast_path():
    plain = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = convert(plain, "fa")
    x = torch.randn(2, 5, 8)
    assert forward_difference(plain, model, x) == 0
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), model.eval()(x))


def test_multihead_attentions_projections_are_sites():
    report = convert(nn.MultiheadAttention(8, 2, batch_first=True), "fa").conversion
    assert {site.weight for site in report.sites} == {"in_proj_weight", "out_proj.weight"}
    assert not report.skipped


def test_attention_that_a_forward_calls_as_a_function_has_its_projections_feedback():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.packed = nn.Parameter(torch.randn(24, 8))
            self.bias = nn.Parameter(torch.randn(24))
            self.out = nn.Linear(8, 8)

        def forward(self, x):
            return functional.multi_head_attention_forward(
                x, x, x, 8, 2, self.packed, self.bias, None, None, False, 0.0, self.out.weight, self.out.bias
            )[0]

    torch.manual_seed(0)
    plain = Own().double()
    model = convert(plain, "fa")
    assert {site.name for site in model.conversion.sites} == {"packed", "out"}
    (x, _, _), twin = attention_inputs("self"), copy.deepcopy(plain)
    with torch.no_grad():
        twin.out.weight.copy_(feedback_of(model.out).F0)
    assert torch.equal(model(x), plain(x))
    for one in (model, plain, twin):
        one(x).sum().backward()
    assert relative_error(model.out.weight.grad, plain.out.weight.grad) <= EXACT
    # The error of the packed weight has come down through the output's feedback weight.
    assert relative_error(model.packed.grad, twin.packed.grad) <= EXACT


class Pooling(nn.Module):
    """Learned queries attend to a signal, in a model that applies a weight of its own after it."""

    def __init__(self, normed):
        super().__init__()
        self.below, self.norm = nn.Linear(8, 8), nn.LayerNorm(8) if normed else nn.Identity()
        self.query, self.attention = nn.Parameter(torch.randn(3, 8)), nn.MultiheadAttention(8, 2)
        self.out = nn.Parameter(torch.randn(8, 4))

    def forward(self, x):
        h = self.below(x)
        return self.attention(self.norm(self.query), h, h, need_weights=False)[0] @ self.out


@pytest.mark.parametrize("normed", [True, False])
def test_learned_queries_have_the_projections_feedback_too(normed):
    model = convert(Pooling(normed).double(), "fa", strict=True)
    x = torch.randn(5, 8, dtype=torch.float64)
    delta = torch.randn(3, 4, dtype=torch.float64)
    model(x).backward(delta)

    layer, h = model.attention, model.below(x).detach().requires_grad_()
    query = model.norm(model.query).detach().requires_grad_()
    F = feedback_of(layer, "in_proj_weight").feedback_weight(layer.in_proj_weight).detach()
    projections = zip((query, h, h), layer.in_proj_weight.chunk(3), F.chunk(3), strict=True)
    q, k, v = (sent(functional.linear, signal, W.detach(), F) for signal, W, F in projections)
    q, k, v = (one.unflatten(-1, (2, 4)).transpose(0, 1) for one in (q, k, v))
    attended = functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
    F = feedback_of(layer.out_proj).feedback_weight(layer.out_proj.weight).detach()
    F_out = feedback_of(model, "out").feedback_weight(model.out).detach()
    attended.backward(delta @ F_out.t() @ F)

    of_query = torch.autograd.grad(model.norm(model.query), model.query, query.grad)[0]
    assert relative_error(model.query.grad, of_query) <= EXACT
    assert relative_error(model.below.weight.grad, h.grad.t() @ x) <= EXACT
    assert verify(model, x).balanced
