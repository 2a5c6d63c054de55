"""Weights that a layer computes from Parameters or constants alone: applied as they are, and named."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pfa_convert import UserError, convert


class Generated(nn.Module):
    """A static hypernetwork of one layer."""

    named = ("generator",)

    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(4, 12)
        self.z = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return functional.linear(x, self.generator(self.z))


class Kernel(nn.Module):
    """A continuous kernel: a network of positions makes the weight of a convolution."""

    named = ("kernel.3",)

    def __init__(self):
        super().__init__()
        self.kernel = nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 36))
        self.register_buffer("positions", torch.randn(9, 2))
        self.first = nn.Linear(12, 36)

    def forward(self, x):
        weight = self.kernel(self.positions).t().reshape(6, 6, 3, 3) / 3
        return functional.conv2d(self.first(x).view(-1, 6, 6, 1), weight, padding=1)


class Inside(nn.Module):
    """The generator is a module with a forward of its own, which takes nothing."""

    named = ("generator.layer",)

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(6, 4)
            self.layer = nn.Linear(4, 12)

        def forward(self):
            return torch.tanh(self.layer(self.table(torch.arange(6))))

    def __init__(self):
        super().__init__()
        self.generator = Inside.Generator()
        self.first = nn.Linear(12, 12)

    def forward(self, x):
        return functional.linear(self.first(x), self.generator())


class Two(nn.Module):
    """The weight is the sum of what two layers make."""

    named = ("one", "other")

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 12), nn.Linear(4, 12)
        self.z = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return functional.linear(x, self.one(self.z) + torch.relu(self.other(self.z)))


class OfTheInput(nn.Module):
    """The input takes part: a product of two activations."""

    named = ()

    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(12, 60)
        self.z = nn.Parameter(torch.randn(1, 12))

    def forward(self, x):
        weight = self.generator(self.z) + self.generator(x)
        return functional.linear(x, weight.mean(0).view(5, 12))


class Positions(nn.Module):
    """Keys of positions, which queries meet as they meet those of a signal."""

    named = ()

    def __init__(self):
        super().__init__()
        self.queries, self.keys = nn.Linear(12, 12), nn.Linear(3, 12)
        self.register_buffer("positions", torch.randn(7, 3))

    def forward(self, x):
        return self.queries(x) @ self.keys(self.positions).t()


class LearnedQueries(nn.Module):
    """Learned tokens go through layers before they meet what the input makes."""

    named = ()

    def __init__(self):
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(1, 5, 12))
        self.of_tokens, self.of_input, self.last = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x):
        q, k = self.of_tokens(self.tokens), self.of_input(x)[None]
        return self.last(functional.scaled_dot_product_attention(q, k, k))


@pytest.mark.parametrize("kind", [Generated, Kernel, Inside, Two, OfTheInput, Positions, LearnedQueries])
def test_a_layer_whose_output_is_applied_as_a_weight_is_named(kind):
    model = kind()
    report = convert(model, "fa").conversion
    assert tuple(one.name for one in report.skipped) == kind.named
    assert all("applies, as its weight, what this layer makes" in one.reason for one in report.skipped)
    if kind.named:
        with pytest.raises(UserError, match=kind.named[0]):
            convert(model, "fa", strict=True)
    else:
        convert(model, "fa", strict=True)


@pytest.mark.parametrize("kind", [Generated, Two])
def test_the_error_goes_back_through_such_a_weight_as_through_any_signal(kind):
    plain = kind().double()
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    gradients = []
    for model in (plain, convert(plain, "fa")):
        weight = model.get_parameter(f"{kind.named[0]}.weight")
        gradients.append(torch.autograd.grad(model(x).pow(2).sum(), (x, weight)))
    assert all(map(torch.allclose, *gradients))
