"""Every rule in half precision and on inputs at the edge of what a layer takes."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from pfa_convert import convert, feedback_phase
from pfa_convert.rules import RULES

PATHS = [rule for rule in RULES if rule != "dfa"]
"""The rules whose error goes down layer by layer, through an F of the shape of W."""


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


def gradients(model, x, delta):
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(3)
    model(x).backward(delta)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"x": x.grad, **found}


def error(found, reference):
    return {
        key: ((found[key].double() - reference[key]).norm() / reference[key].norm().clamp_min(1e-30)).item()
        for key in reference
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", PATHS)
def test_half_precision_is_as_exact_as_backpropagations_own(rule, dtype):
    if rule == "brsf":
        pytest.skip("draws magnitudes in the dtype of the weight: other ones in each")
    x, delta = torch.randn(16, 3, 6, 6), torch.randn(16, 5)
    errors = {}
    for name in ("bp", rule):
        exact = convert(small_net(), name).double()
        half = convert(small_net(), name).to(dtype)
        exact.load_state_dict({key: value.double() for key, value in half.state_dict().items()})
        exact_inputs = [tensor.to(dtype).double() for tensor in (x, delta)]
        errors[name] = error(gradients(half, x.to(dtype), delta.to(dtype)), gradients(exact, *exact_inputs))
    for key, own in errors["bp"].items():
        assert errors[rule][key] <= 2 * own + torch.finfo(dtype).eps / 4, key


@pytest.mark.parametrize("rule", PATHS)
def test_an_infinite_input_spoils_what_it_spoils_in_backpropagation(rule):
    x, delta = torch.randn(3, 3, 6, 6), torch.randn(3, 5)
    x[1, 0, 2, 2] = torch.inf
    plain = gradients(convert(small_net(), "bp"), x, delta)
    ours = gradients(convert(small_net(), rule), x, delta)
    for key in ("0.weight", "2.weight", "4.weight", "4.bias"):
        assert torch.equal(ours[key].isfinite(), plain[key].isfinite()), key


@pytest.mark.parametrize("rule", list(RULES))
def test_zeros_one_image_and_none(rule):
    model = convert(small_net(), rule, options={"strategy": "explicit"} if rule == "bp" else {})
    for images in (torch.zeros(2, 3, 6, 6), torch.randn(1, 3, 6, 6), torch.randn(0, 3, 6, 6)):
        found = gradients(model, images, torch.ones(len(images), 5))
        assert found["x"].shape == images.shape
        assert all(gradient.isfinite().all() for gradient in found.values())
        if not len(images):
            assert not any(found[key].any() for key in ("0.weight", "2.weight", "4.weight"))


@pytest.mark.parametrize("rule", list(RULES))
def test_the_layout_of_the_input_in_memory_changes_nothing(rule):
    model = convert(small_net(), rule).double()
    x, delta = torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    expected = gradients(model, x, delta)
    strided = torch.randn(4, 3, 6, 12, dtype=torch.float64)[..., ::2].copy_(x)
    for other in (x.to(memory_format=torch.channels_last), strided):
        found = gradients(model, other, delta)
        assert max(error(found, expected).values()) < 1e-12


@pytest.mark.parametrize("rule", list(RULES))
def test_frozen_weights_still_send_the_error_down(rule):
    model = convert(small_net(), rule)
    x, delta = torch.randn(2, 3, 6, 6), torch.randn(2, 5)
    expected = gradients(model, x, delta)["x"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("4."))
    found = gradients(model, x, delta)
    assert torch.equal(found["x"], expected)
    assert all(key == "x" or key.startswith("4.") for key in found)


@pytest.mark.parametrize("rule", list(RULES))
def test_what_learns_between_steps_stays_finite(rule):
    model = convert(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), rule)
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].weight.fill_(1e4)
    if rule in ("wm", "sa"):
        for _ in range(50):
            feedback_phase(model)
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point())


def test_functional_transforms_are_refused_with_a_way_out_or_work():
    model = convert(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "pfa")
    parameters, x = dict(model.named_parameters()), torch.randn(5, 4)

    def loss(parameters, x):
        return functional_call(model, parameters, (x,)).square().sum()

    for transform in (
        lambda: grad(loss)(parameters, x),
        lambda: vmap(grad(loss), (None, 0))(parameters, x),
        lambda: jvp(model, (x,), (x,)),
        lambda: vmap(model)(x),
    ):
        with pytest.raises(RuntimeError, match="rule 'bp'"):
            transform()
    with torch.no_grad():
        assert torch.allclose(vmap(model)(x), model(x))
    plain = convert(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "bp")
    assert grad(lambda p: functional_call(plain, p, (x,)).sum())(dict(plain.named_parameters()))
