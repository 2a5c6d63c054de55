"""The operations and statements that random modules are made of.

A step is an expression of the activations `x` (3 x 5 x features), of weights `{W}` and of other Parameters,
`{b}` or `{g}`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Shape = Callable[[int, int], tuple[int, ...]]


@dataclass(frozen=True)
class Step:
    """One kind of operation. The shapes are functions of the features that come in and go out.

    `weights` are applied to activations, `others` are Parameters that are not (biases, scales, added tables).
    `same` says that no features change. A `layer` is a module that the expression calls as `{layer}`; its
    weights and others are the Parameters of those names.
    """

    expression: str
    weights: dict[str, Shape] = field(default_factory=dict)
    others: dict[str, Shape] = field(default_factory=dict)
    same: bool = False
    layer: Callable[[int, int], nn.Module] | None = None


def _io(n: int, m: int) -> tuple[int, ...]:
    return n, m


def _oi(n: int, m: int) -> tuple[int, ...]:
    return m, n


def _o(n: int, m: int) -> tuple[int, ...]:
    return (m,)


def _of(*shape: Any) -> Callable[[int, int], tuple[int, ...]]:
    return lambda n, m: tuple({"n": n, "m": m, "2m": 2 * m, "nm": n * m}.get(s, s) for s in shape)


def _step(expression: str, W: Any, **more: Any) -> Step:
    others = {name: shape for name, shape in more.items() if name in ("b", "g")}
    weights = {"W": W} | {name: shape for name, shape in more.items() if name in ("A", "B")}
    return Step(expression, weights, others)


def _layer(expression: str, layer: Callable[[int, int], nn.Module], *others: str) -> Step:
    return Step(expression, {"weight": _o}, {name: _o for name in others}, layer=layer)


FLAT, TURNED = "{x}.reshape(15, -1)", "{x}.transpose(1, 2)"
STEPS: dict[str, Step] = {
    "linear": _step("F.linear({x}, {W}, {b})", _oi, b=_o),
    "linear by keywords": _step("F.linear(input={x}, weight={W}, bias=None)", _oi),
    "@": _step("{x} @ {W}", _io),
    "@ t": _step("{x} @ {W}.t()", _oi),
    "@ T": _step("{x} @ {W}.T", _oi),
    "@ permuted": _step("{x} @ {W}.permute(1, 0)", _oi),
    "on the left": _step(f"({{W}} @ {TURNED}).transpose(1, 2)", _oi),
    "matmul": _step("torch.matmul({x}, {W})", _io),
    "Tensor.matmul": _step("{x}.matmul({W}.transpose(-1, -2))", _oi),
    "a matrix for each position": _step("torch.matmul({x}.unsqueeze(2), {W}).squeeze(2)", _of(5, "n", "m")),
    "mm": _step(f"torch.mm({FLAT}, {{W}}).view(3, 5, -1)", _io),
    "Tensor.mm on the left": _step(f"{{W}}.mm({FLAT}.t()).t().reshape(3, 5, -1)", _oi),
    "bmm": _step("torch.bmm({x}, {W})", _of(3, "n", "m")),
    "bmm expanded": _step("torch.bmm({x}, {W}.expand(3, -1, -1))", _io),
    "addmm": _step(f"torch.addmm({{b}}, {FLAT}, {{W}}).view(3, 5, -1)", _io, b=_o),
    "addmm scaled": _step(
        f"torch.addmm({{b}}, {FLAT}, {{W}}.t(), beta=0.5, alpha=2.0).view(3, 5, -1)", _oi, b=_o
    ),
    "Tensor.addmm": _step(f"{{b}}.addmm({FLAT}, {{W}}).view(3, 5, -1)", _io, b=_o),
    "baddbmm": _step("torch.baddbmm({b}, {x}, {W})", _of(3, "n", "m"), b=_of(1, 1, "m")),
    "addbmm": _step("torch.addbmm({b}, {x}, {W}).expand(3, 5, -1)", _of(3, "n", "m"), b=_of(1, "m")),
    "einsum": _step("torch.einsum('bti,oi->bto', {x}, {W})", _oi),
    "einsum turned": _step("torch.einsum('io,...i->...o', {W}, {x})", _io),
    "einsum by heads": _step("torch.einsum('bti,hio->btho', {x}, {W}).sum(2)", _of(2, "n", "m")),
    "einsum of three": _step("torch.einsum('bti,ik,ko->bto', {x}, {A}, {W})", _of(3, "m"), A=_of("n", 3)),
    "tensordot": _step("torch.tensordot({x}, {W}, dims=1)", _io),
    "tensordot by dimensions": _step("torch.tensordot({x}, {W}, dims=([2], [1]))", _oi),
    "inner": _step("torch.inner({x}, {W})", _oi),
    "conv1d": _step(f"F.conv1d({TURNED}, {{W}}, {{b}}, padding=1).transpose(1, 2)", _of("m", "n", 3), b=_o),
    "torch.conv1d": _step(f"torch.conv1d({TURNED}, {{W}}, padding='same').transpose(1, 2)", _of("m", "n", 3)),
    "conv2d": _step(
        f"F.conv2d({TURNED}[:, :, None], {{W}}, padding=(0, 1))[:, :, 0].mT", _of("m", "n", 1, 3)
    ),
    "conv_transpose1d": _step(
        f"F.conv_transpose1d({TURNED}, {{W}}, {{b}}, padding=1).mT", _of("n", "m", 3), b=_o
    ),
    "torch.convolution": _step(
        f"torch.convolution({TURNED}, {{W}}, None, [1], [1], [1], False, [0], 1).transpose(1, 2)",
        _of("m", "n", 3),
    ),
    "aten.linear": _step("torch.ops.aten.linear({x}, {W}, {b})", _oi, b=_o),
    "aten.mm": _step(f"torch.ops.aten.mm.default({FLAT}, {{W}}).view(3, 5, -1)", _io),
    "aten.addmm": _step(f"torch.ops.aten.addmm({{b}}, {FLAT}, {{W}}).view(3, 5, -1)", _io, b=_o),
    "aten.convolution": _step(
        f"torch.ops.aten.convolution.default({TURNED}, {{W}}, {{b}}, [1], [1], [1], False, [0], 1).mT",
        _of("m", "n", 3),
        b=_o,
    ),
    "a slice": _step("F.linear({x}, {W}[1:])", lambda n, m: (m + 1, n)),
    "two slices": _step("F.linear({x}, {W}[:1]) + F.linear({x}, {W}[1:])", lambda n, m: (m + 1, n)),
    "chunks": _step("sum(F.linear({x}, w) for w in {W}.chunk(2))", _of("2m", "n")),
    "split": _step("F.linear({x}, {W}.split([1, {W}.shape[0] - 1])[1])", lambda n, m: (m + 1, n)),
    "unbind": _step("F.linear({x}, {W}.unbind(0)[1]) * 2", _of(2, "m", "n")),
    "selected": _step("{x} @ {W}[0]", _of(2, "n", "m")),
    "a multiple": _step("F.linear({x}, 0.5 * {W})", _oi),
    "a learned multiple": _step("F.linear({x}, {W} * {g})", _oi, g=_of(1)),
    "centred": _step("F.linear({x}, {W} - {W}.mean())", _oi),
    "normalised": _step("F.linear({x}, {W} / {W}.norm(dim=1, keepdim=True))", _oi),
    "masked": _step("{x} @ torch.tril({W})", _io),
    "W + B @ A": _step("F.linear({x}, {W} + {B} @ {A})", _oi, A=_of(2, "n"), B=_of("m", 2)),
    "B (A x)": _step("F.linear({x}, {W}) + {x} @ ({A}.t() @ {B}.t())", _oi, A=_of(2, "n"), B=_of("m", 2)),
    "a vector viewed": _step("F.linear({x}, {W}.view(-1, {x}.shape[-1]))", _of("nm")),
    "concatenated": _step("F.linear({x}, torch.cat([{W}, {A}]))[..., 1:]", _oi, A=_of(1, "n")),
    "stacked": _step("torch.matmul({x}, torch.stack([{W}, {A}])[:, None]).sum(0)", _io, A=_io),
    "cast": _step("F.linear({x}, {W}.to({x}.dtype))", _oi),
    "nn.Linear": _layer("{layer}({x})", nn.Linear, "bias"),
    "nn.Conv1d": _layer(
        f"{{layer}}({TURNED}).mT",
        lambda n, m: nn.Conv1d(n, m, 3, padding="same", padding_mode="circular"),
        "bias",
    ),
    "nn.ConvTranspose1d": _layer(
        f"{{layer}}({TURNED}).mT", lambda n, m: nn.ConvTranspose1d(n, m, 3, padding=1, bias=False)
    ),
    "nn.Bilinear": _layer("{layer}({x}, {x}.cos())", lambda n, m: nn.Bilinear(n, n, m), "bias"),
    "a layer's weight, turned": _layer("{x} @ {layer}.weight.t()", lambda n, m: nn.Linear(n, m, bias=False)),
    "a layer's weight, sliced": _layer(
        "F.linear({x}, {layer}.weight[1:])", lambda n, m: nn.Linear(n, m + 1, bias=False)
    ),
    "a table's rows": _layer("F.linear({x}, {layer}.weight)", lambda n, m: nn.Embedding(m, n)),
    # No linear map with a weight: the error below is backpropagation's.
    "an added table": Step("{x} + {T}", {}, {"T": _of(5, "n")}, same=True),
    "a scale": Step("{x} * {T}", {}, {"T": _of(5, "n")}, same=True),
    "a learned product, added": Step(
        "{x} + ({T} @ {U}).tanh()", {}, {"T": _of(5, 2), "U": _of(2, "n")}, same=True
    ),
    "layer norm": Step(
        "F.layer_norm({x}, {x}.shape[-1:], {g}, {b})", {}, {"g": _of("n"), "b": _of("n")}, same=True
    ),
    "attention without weights": Step("F.scaled_dot_product_attention({x}, {x}, {x})", same=True),
    "noise": Step("{x} + 0.1 * torch.randn(5, 1)", same=True),
    "dropout": Step("F.dropout({x}, self.p, self.training)", same=True),
    "a buffer": Step("{x} + self.shift", same=True),
}

STATEMENTS: dict[str, str] = {
    "counter": "self.count += 1",
    "kept": "self.last = x.detach()",
    "branch on a flag": "if self.flag:\n    x = x.tanh() * 2",
    "branch on an argument": "if mask is not None:\n    x = x * mask",
    "branch on the mode": "if self.training:\n    x = x + 0.25",
    "buffer updated": "with torch.no_grad():\n    self.shift.mul_(0.5)",
    "shape": "x = x / x.shape[-1] ** 0.5",
}

CONTEXTS: dict[str, str] = {
    "": "x = {value}",
    "residual": "x = torch.cat([x, {value}], -1)",
    "relu": "x = {value}.relu()",
    "in place": "x = {value}\nx += 1\nx.tanh_()",
    "autocast": "with torch.autocast('cpu', torch.bfloat16, enabled=self.mixed):\n    x = {value}\n"
    "x = x.to(self.shift.dtype)",
    "no autocast": "with torch.autocast('cpu', enabled=False):\n    x = {value}",
    "no_grad": "with torch.no_grad():\n    y = {value}\nx = torch.cat([x, y], -1)",
    "flag": "if self.flag:\n    x = torch.cat([x, {value}], -1)\n"
    "else:\n    x = torch.cat([x, x[..., :1].expand(-1, -1, {m})], -1)",
    "other method": "x = self.apply_{i}(x)",
    "checkpoint": "x = checkpoint(self.apply_{i}, x, use_reentrant=False)",
    "loop": "for _ in range(2):\n    y = {value}\nx = y",
}
