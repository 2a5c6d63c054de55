"""Modules that hand weights to children, each with its formula: what it computes, and where the error goes.

A formula is static: a method that names the weights would be taken for one that applies them.
"""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def sent(product, x, W, F):
    """`product(x, W)`, from which `W` learns as ever, and whose error goes through `F`; by plain autograd."""
    twin = product(x, F.detach())
    return product(x.detach(), W) + twin - twin.detach()


def linear(x, W, F):
    return sent(functional.linear, x, W, F)


class Head(nn.Module):
    def forward(self, x, w):
        return x @ w.t()


class Keyword(nn.Module):
    """Applies the one of two weights that it is given by name."""

    def forward(self, x, *, factor=1.0, w=None):
        return x if w is None else factor * torch.einsum("bi,oi->bo", x, w)


class Outer(nn.Module):
    """Hands on what it is handed."""

    def __init__(self):
        super().__init__()
        self.head = Head()

    def forward(self, pair):
        x, w = pair
        return self.head(x, w=w)


class Convolving(nn.Module):
    def forward(self, x, *weights):
        for w in weights:
            x = functional.conv2d(x, w, stride=2, padding=1)
        return x


class Quantise(nn.Module):
    """Learned step size (Esser et al. 2020): `step * round(clamp(w / step))`, straight through."""

    def __init__(self, step=0.2):
        super().__init__()
        self.step = nn.Parameter(torch.tensor(step))
        self.register_buffer("limit", torch.tensor(3.0))

    def forward(self, w):
        scale = 1 / (w.numel() * 3) ** 0.5
        step = self.step * scale + (self.step - self.step * scale).detach()
        levels = torch.minimum((w / step).clamp(min=-4), self.limit)
        return (levels + (levels.round() - levels).detach()) * step


class Low(nn.Module):
    """A handed weight with a change of its own, of low rank, and a product with a weight of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.A = nn.Parameter(torch.randn(2, inputs))
        self.B = nn.Parameter(torch.randn(outputs, 2))
        self.own = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x, w):
        return functional.linear(x, w + self.B @ self.A) + x.tanh() @ self.own.t()


class Tied(nn.Module):
    """The read-out applies the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = Head()
        self.x = torch.tensor([1, 5, 2])

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.embed(x))), self.embed.weight)

    @staticmethod
    def formula(self, x, F):
        h = linear(self.embed(x), self.mix.weight, F["mix.weight"]) + self.mix.bias
        return linear(torch.tanh(h), self.embed.weight, F["embed.weight"])


class Autoencoder(nn.Module):
    """The decoder applies the encoder's weight, the other way round."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(5, 3)
        self.decoder = Head()
        self.x = torch.randn(6, 5)

    def forward(self, x):
        return self.decoder(torch.tanh(self.encoder(x)), self.encoder.weight.t())

    @staticmethod
    def formula(self, x, F):
        W, F = self.encoder.weight, F["encoder.weight"]
        return linear(torch.tanh(linear(x, W, F) + self.encoder.bias), W.t(), F.t())


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.child = Keyword()
        self.x = torch.randn(6, 5)

    def forward(self, x):
        return self.child(self.child(x), factor=0.5, w=self.weight)

    @staticmethod
    def formula(self, x, F):
        return 0.5 * linear(x, self.weight, F["weight"])


class Levels(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.outer = Outer()
        self.x = torch.randn(6, 5)

    def forward(self, x):
        return self.outer((x, 2 * self.weight))

    @staticmethod
    def formula(self, x, F):
        return linear(x, 2 * self.weight, 2 * F["weight"])


class Layers(nn.Module):
    """A list of layers, each given the same weight, the first one twice."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.layers = nn.ModuleList([Head(), Outer()])
        self.x = torch.randn(6, 4)

    def forward(self, x):
        first, second = self.layers
        return second((first(torch.tanh(first(x, self.weight)), self.weight), self.weight))

    @staticmethod
    def formula(self, x, F):
        W, F = self.weight, F["weight"]
        return linear(linear(torch.tanh(linear(x, W, F)), W, F), W, F)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, 3, 3))
        self.second = nn.Conv2d(2, 3, 3)
        self.child = Convolving()
        self.x = torch.randn(2, 2, 9, 9)

    def forward(self, x):
        return self.child(x, self.weight, self.second.weight)

    @staticmethod
    def formula(self, x, F):
        def product(x, w):
            return functional.conv2d(x, w, stride=2, padding=1)

        x = sent(product, x, self.weight, F["weight"])
        return sent(product, x, self.second.weight, F["second.weight"])


class Quantised(nn.Linear):
    """The error goes through the quantised feedback weight; the step learns from the weight."""

    def __init__(self):
        super().__init__(5, 3)
        self.quantise = Quantise()
        self.x = torch.randn(6, 5)

    def forward(self, x):
        return functional.linear(x, self.quantise(self.weight), self.bias)

    @staticmethod
    def formula(self, x, F):
        return linear(x, self.quantise(self.weight), self.quantise(F["weight"])) + self.bias


class QuantisedForHead(Quantised):
    def __init__(self):
        super().__init__()
        self.head = nn.ModuleDict({"a": Outer()})

    def forward(self, x):
        return self.head["a"]((x, self.quantise(self.weight))) + self.bias


class Both(nn.Module):
    """The child has weights of its own, and is a converted module itself."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.child = Low(5, 3)
        self.x = torch.randn(6, 5)

    def forward(self, x):
        return self.child(x, self.weight)

    @staticmethod
    def formula(self, x, F):
        A, B, own = self.child.A, self.child.B, self.child.own
        W, G = self.weight + B @ A, F["weight"] + F["child.B"] @ F["child.A"]
        return linear(x, W, G) + linear(x.tanh(), own, F["child.own"])


class Checkpointed(Both):
    def forward(self, x):
        return checkpoint(self.child, x, self.weight, use_reentrant=False)


class CheckpointsInside(nn.Module):
    """A checkpoint in the child, around a product with its own weight and one with the handed weight."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(4, 5))

    def forward(self, x, w):
        return checkpoint(self.products, x, w, use_reentrant=False)

    def products(self, x, w):
        return torch.tanh(x @ self.own.t()) @ w.t()


class OfCheckpoints(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.child = CheckpointsInside()
        self.x = torch.randn(6, 5)

    def forward(self, x):
        return self.child(x, self.weight)

    @staticmethod
    def formula(self, x, F):
        h = torch.tanh(linear(x, self.child.own, F["child.own"]))
        return linear(h, self.weight, F["weight"])


class Returning(nn.Module):
    """Has weights, and hands them back with what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.weight = nn.Parameter(torch.randn(5, 5))

    def forward(self, x=None, w=None):
        if x is None:
            return self.weight * self.scale
        return x + 1, w * self.scale


class Received(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.child = Returning()
        self.x = torch.randn(6, 5)

    def forward(self, x):
        x, w = self.child(x @ self.child(), self.weight)
        return functional.linear(x, w)

    @staticmethod
    def formula(self, x, F):
        s, own = self.child.scale, self.child.weight
        x = linear(x, s * own.t(), s * F["child.weight"].t()) + 1
        return linear(x, s * self.weight, s * F["weight"])


class Signs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return w.sign()

    @staticmethod
    def backward(ctx, delta):
        return delta


class Binarise(nn.Module):
    def forward(self, w):
        return Signs.apply(w) * w.abs().mean()


class Rotate(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.register_buffer("rotation", torch.linalg.qr(torch.randn(size, size))[0])

    def forward(self, w):
        return w @ self.rotation


class Rotated(nn.Module):
    """The weight goes through an autograd function in a child, and a matrix two levels down."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.through = nn.Sequential(Binarise(), nn.Sequential(Rotate(5)))
        self.x = torch.randn(6, 5)

    def forward(self, x):
        return x @ self.through(self.weight).t()

    @staticmethod
    def formula(self, x, F):
        return linear(x, self.through(self.weight), self.through(F["weight"]))


class Experts(nn.Module):
    """Code that is not traced: it loops over what it is given."""

    def forward(self, x, weights, **more):
        for w in weights:
            x = torch.tanh(x @ w.t())
        return x @ more["last"].t()


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(5, 5), torch.randn(5, 5)])
        self.last = nn.Parameter(torch.randn(3, 5))
        self.experts = Experts()
        self.x = torch.randn(6, 5)

    def forward(self, x):
        return self.experts(x, list(self.weights), last=self.last)

    @staticmethod
    def formula(self, x, F):
        for index, W in enumerate(self.weights):
            x = torch.tanh(linear(x, W, F[f"weights.{index}"]))
        return linear(x, self.last, F["last"])


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 4))
        self.second = nn.Parameter(torch.randn(4, 5))

    def forward(self, z):
        return torch.tanh(z @ self.first) @ self.second


class Generated(nn.Module):
    """A weight that a child computes from a Parameter that it is handed, and its own."""

    def __init__(self):
        super().__init__()
        self.z = nn.Parameter(torch.randn(3, 4))
        self.generator = Generator()
        self.x = torch.randn(6, 5)

    def forward(self, x):
        return functional.linear(x, self.generator(self.z))

    @staticmethod
    def formula(self, x, F):
        F = torch.tanh(F["z"] @ F["generator.first"]) @ F["generator.second"]
        return linear(x, self.generator(self.z), F)


class Doubling(nn.Module):
    """Changes what it is handed in place, beside a weight of its own."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(5, 5))

    def forward(self, x, w):
        w.mul_(2)
        return (x @ self.own.t()) @ w.t()


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.child = Doubling()
        self.x = torch.randn(6, 5)

    def forward(self, x):
        return self.child(x, self.weight * 1.5)

    @staticmethod
    def formula(self, x, F):
        return linear(linear(x, self.child.own, F["child.own"]), 3 * self.weight, 3 * F["weight"])


MODELS = [
    Tied,
    Autoencoder,
    Named,
    Levels,
    Layers,
    Convolutions,
    Quantised,
    QuantisedForHead,
    Both,
    Checkpointed,
    OfCheckpoints,
    Received,
    Rotated,
    Listed,
    Generated,
    Doubled,
]
