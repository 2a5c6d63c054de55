"""The autograd primitive: what it computes, only when needed, and under PyTorch's other machinery."""

import copy

import pytest
import torch
from harness import EXACT, relative_error
from torch import nn

from pfa_convert import convert


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


@pytest.mark.parametrize("rule", ["fa", "usf", "kp", "pfa", "pfa-o"])
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
