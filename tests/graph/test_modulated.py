"""Convolutions whose weights each example scales (StyleGAN2, Karras et al. 2020, section 2.2)."""

import math

import pytest
import torch
from harness import EXACT, feedback_of, relative_error
from torch import nn
from torch.nn import functional

from pfa_convert import convert, verify


class Modulated(nn.Module):
    """Scales its weight by a style of each example, and to unit norm; all examples are groups of one call."""

    def __init__(self, rest):
        super().__init__()
        self.rest = rest
        self.weight = nn.Parameter(torch.randn(1, 5, 4, 3, 3))
        self.style = nn.Linear(6, 4)

    def forward(self, x, z):
        batch = x.shape[0]
        weight = self.weight * self.style(z).view(batch, 1, 4, 1, 1)
        weight = weight * torch.rsqrt(weight.square().sum([2, 3, 4], keepdim=True) + 1e-8)
        x = x.reshape(1, -1, *self.rest(x))
        y = functional.conv2d(x, weight.view(batch * 5, 4, 3, 3), padding=1, groups=batch)
        return y.reshape(batch, -1, *self.rest(y))


RESTS = {
    "shape": lambda x: x.shape[2:],
    "size": lambda x: x.size()[2:],
    "list": lambda x: list(x.shape)[2:],
    "tuple": lambda x: tuple(x.shape[-2:]),
    "loop": lambda x: [size for size in x.shape[2:]],
    "product": lambda x: (x.shape[2], math.prod(x.shape[3:])),
}


@pytest.mark.parametrize("name", RESTS)
def test_the_error_goes_through_the_feedback_weight_scaled_as_the_weight_is(name):
    torch.manual_seed(0)
    model = convert(Modulated(RESTS[name]).double(), "fa", strict=True)
    assert [site.weight for site in model.conversion.sites] == ["style.weight", "weight"]
    x, z = torch.randn(3, 4, 8, 8).double().requires_grad_(), torch.randn(3, 6).double()
    y = model(x, z)
    delta = torch.randn_like(y)
    y.backward(delta)

    style = model.style(z).detach()[:, None, :, None, None]
    demodulation = torch.rsqrt((model.weight * style).square().sum([2, 3, 4], keepdim=True) + 1e-8).detach()
    F = feedback_of(model).feedback_weight(model.weight) * style * demodulation
    for n in range(3):
        below = functional.conv_transpose2d(delta[n : n + 1], F[n], padding=1)
        assert relative_error(x.grad[n : n + 1], below) <= EXACT
    assert verify(model, x.detach(), z).balanced


def test_the_weight_and_its_style_learn_as_by_backpropagation():
    torch.manual_seed(0)
    plain = Modulated(RESTS["shape"]).double()
    x, z = torch.randn(3, 4, 8, 8).double(), torch.randn(3, 6).double()
    gradients = []
    for model in (plain, convert(plain, "fa")):
        model.zero_grad()
        model(x, z).square().mean().backward()
        gradients.append([p.grad.clone() for p in (model.weight, model.style.weight)])
    for ours, theirs in zip(*gradients, strict=True):
        assert relative_error(ours, theirs) <= EXACT
