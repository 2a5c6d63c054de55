"""The autograd primitive: what it computes, only when needed, and under PyTorch's other machinery."""

import copy

import pytest
import torch
from harness import EXACT, cases, gradients, literal, problem, relative_error
from torch import nn

from pfa_convert import convert

CASES = {case.name: case for case in cases()}


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, groups=3, stride=2),
        nn.Flatten(),
        nn.Linear(54, 4),
    )


def loss_of(model, x):
    return model(x).square().mean()


@pytest.mark.parametrize("name", CASES)
def test_the_output_is_the_plain_layers_to_the_last_bit(name):
    case = CASES[name]
    x = problem(case)[0].float()
    assert torch.equal(convert(nn.Sequential(case.layer), "fa")(x), case.layer(x))


@pytest.mark.parametrize("name", CASES)
def test_each_gradient_is_right_whichever_others_are_wanted(name):
    case = CASES[name]
    x, delta = problem(case)
    model = convert(nn.Sequential(case.layer), "fa").double()
    layer = model[0]
    dx, parameters = literal(case.layer, layer.feedback_of_weight.F0, x, delta)
    for wants_x, wants_W, wants_b in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)]:
        model.zero_grad()
        layer.weight.requires_grad_(bool(wants_W))
        if layer.bias is not None:
            layer.bias.requires_grad_(bool(wants_b))
        given = x.clone().requires_grad_(bool(wants_x))
        output = model(given)
        if not output.requires_grad:  # only the bias was wanted, and there is none
            continue
        output.backward(delta)
        assert (given.grad is None) != wants_x and (layer.weight.grad is None) != wants_W
        assert not wants_x or relative_error(given.grad, dx) <= EXACT
        assert not wants_W or relative_error(layer.weight.grad, parameters["weight"]) <= EXACT
        if layer.bias is not None:
            assert (layer.bias.grad is None) != wants_b
            assert not wants_b or relative_error(layer.bias.grad, parameters["bias"]) <= EXACT


def test_bias_alone_costs_no_product_with_the_weights():
    model = convert(nn.Linear(5, 3), "fa")
    model.weight.requires_grad_(False)
    with torch.profiler.profile() as profile:
        model(torch.randn(4, 5)).sum().backward()
    assert not any(event.key == "aten::mm" for event in profile.key_averages())


@pytest.mark.parametrize(
    "name", ["linear no bias, 4-D", "conv2d groups", "conv2d reflect", "transposed 2d groups"]
)
def test_autocast_is_that_of_the_plain_layer_with_F_for_W(name):
    case = CASES[name]
    x, delta = (tensor.float() for tensor in problem(case))
    model = convert(nn.Sequential(case.layer), "pfa", options={"expansion": 3, "strategy": "fused"})
    through_F = copy.deepcopy(case.layer)
    with torch.no_grad():
        through_F.weight.copy_(model[0].feedback_of_weight.feedback_weight(model[0].weight))
    results = []
    for layer in (model, case.layer, through_F):
        given = x.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(given)
        assert given.dtype == torch.float32
        output.backward(delta.to(output.dtype))
        results.append((output, given.grad))
    (ours, dx), (plain, _), (_, expected) = results
    assert ours.dtype == plain.dtype == torch.bfloat16 and torch.equal(ours, plain)
    # Rounded to 8 bits once for the weight and once for the result.
    assert dx.dtype == torch.float32 and relative_error(dx, expected) < 1e-2
    for got, wanted in zip(
        (model[0].weight, model[0].bias), (case.layer.weight, case.layer.bias), strict=True
    ):
        if got is not None:
            assert got.grad.dtype == torch.float32 and relative_error(got.grad, wanted.grad) < 1e-2
    assert model[0].feedback_of_weight.R.grad.dtype == torch.float32


def test_no_autocast_for_double():
    model = convert(nn.Linear(5, 3), "fa").double()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 5, dtype=torch.float64)).dtype == torch.float64


def test_a_transposed_convolution_may_be_asked_for_an_output_size():
    class Upsample(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 2, 3, stride=2)

        def forward(self, x):
            return self.up(x, output_size=[10, 9])

    plain = Upsample().double()
    model = convert(plain, "fa")
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    delta = torch.randn(1, 2, 10, 9, dtype=torch.float64)
    F0 = model.up.feedback_of_weight.F0
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        twin.up.weight.copy_(F0)
    assert relative_error(gradients(model, x, delta)[0], gradients(twin, x, delta)[0]) <= EXACT


def test_only_what_needs_a_gradient_gets_one():
    model = convert(small_net(), "fa")
    model[0].weight.requires_grad_(False)
    model[4].requires_grad_(False)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    loss_of(model, x).backward()
    assert x.grad is not None and model[2].weight.grad is not None
    assert model[0].weight.grad is None and model[4].weight.grad is None


def test_frozen_weights_still_send_the_error_through_their_feedback_weight():
    model = convert(nn.Linear(5, 3), "fa")
    model.weight.requires_grad_(False)
    x = torch.randn(4, 5, requires_grad=True)
    model(x).sum().backward()
    assert torch.allclose(x.grad, torch.ones(4, 3) @ model.feedback_of_weight.F0)


def test_second_derivatives_are_refused_with_a_clear_word():
    model = convert(small_net(), "pfa")
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss_of(model, x), x, create_graph=True)


@pytest.mark.parametrize("rule", ["fa", "usf", "pfa"])
def test_compiles_without_a_graph_break(rule):
    model = convert(small_net(), rule)
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss_of(model, x).backward()
    eager = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss_of(compiled, x).backward()
    for name, gradient in eager.items():
        # The compiler may reorder sums, nothing more.
        assert relative_error(model.get_parameter(name).grad, gradient) < 1e-5


def test_autocast_treats_the_layer_as_it_treats_the_plain_one():
    plain = small_net()
    through = convert(plain, "bp", options={"strategy": "explicit"})
    x = torch.randn(2, 3, 8, 8)
    for model in (plain, through):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
        assert output.dtype == torch.bfloat16
        output.float().square().mean().backward()
    for ours, theirs in zip(through.parameters(), plain.parameters(), strict=True):
        # Both are rounded to 8 bits in every layer; sums may be taken in another order.
        assert ours.grad.dtype == torch.float32
        assert relative_error(ours.grad, theirs.grad) < 2e-2


def test_in_place_activation_behind_a_linear_layer_of_sequences():
    model = convert(nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)), "fa")
    x = torch.randn(2, 5, 6)
    model(x).sum().backward()
    # Relu's gradient times the error through F0 of the last layer.
    delta = torch.ones(10, 2) @ model[2].feedback_of_weight.F0
    delta = delta * (torch.nn.functional.linear(x, model[0].weight, model[0].bias).view(10, 6) > 0)
    assert relative_error(model[0].weight.grad, delta.t() @ x.view(10, 6)) < 1e-6


def test_without_gradients_the_plain_operation_runs():
    model = convert(small_net(), "pfa")
    with torch.no_grad(), torch.profiler.profile() as profile:
        model(torch.randn(2, 3, 8, 8))
    assert not any("FeedbackPass" in event.key or "bmm" in event.key for event in profile.key_averages())


def test_a_deep_copy_is_independent():
    model = convert(small_net(), "kp").double()
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    loss_of(twin, x).backward()
    assert all(p.grad is None for p in model.parameters())
    loss_of(model, x).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is None or relative_error(ours.grad, theirs.grad) <= EXACT


@pytest.mark.parametrize("rule", ["fa", "pfa", "usf"])
def test_empty_batches_and_non_contiguous_inputs(rule):
    model = convert(small_net(), rule).double()
    loss_of(model, torch.empty(0, 3, 8, 8, dtype=torch.float64)).nan_to_num().backward()
    x = torch.randn(2, 3, 16, 8, dtype=torch.float64)[:, :, ::2]
    gradients = []
    for images in (x, x.contiguous(), x.contiguous(memory_format=torch.channels_last)):
        model.zero_grad()
        loss_of(model, images).backward()
        gradients.append(model[0].weight.grad.clone())
    assert relative_error(gradients[1], gradients[0]) <= EXACT
    assert relative_error(gradients[2], gradients[0]) <= EXACT
