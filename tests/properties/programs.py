"""Random modules written out as Python source, and the same modules with a feedback pass by plain autograd.

In the module a step reads `x @ self.w1`. In the reference it stands in a function of its operands, which
`graft` calls twice: with the weights and detached activations, and with the feedback weights and the
activations.
"""

from __future__ import annotations

import itertools
import linecache
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from steps import CONTEXTS, STATEMENTS, STEPS
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

_numbers = itertools.count()


@dataclass(frozen=True)
class Line:
    """A line of a random module: a step in a context, a statement, or a child with lines of its own."""

    name: str
    context: str = ""
    features: int = 2
    child: tuple[Line, ...] = ()


def random_module(lines: Sequence[Line], features: int) -> nn.Module:
    """Return a module whose forward runs these lines on `x` of 3 x 5 x `features`.

    Its class has the attribute `reference`, the class to give a copy of it, with the feedback weights in the
    attribute `feedback` by name; and `weights`, the names of the Parameters that its own forward applies.
    """
    writer = _Writer(features)
    for index, line in enumerate(lines):
        writer.add(index, line)
    plain, reference = writer.written("plain"), writer.written("reference")
    plain.reference, plain.weights, plain.features = reference, tuple(writer.weights), writer.n  # type: ignore[attr-defined]
    module = plain()
    for name, shape in writer.shapes.items():
        setattr(module, name, nn.Parameter(0.7 * torch.randn(shape)))
    for name, child in writer.children.items():
        setattr(module, name, child)
    module.register_buffer("shift", torch.full((1,), 0.25))
    module.p, module.flag, module.mixed, module.count, module.last = 0.3, True, True, 0, None
    return module


class _Writer:
    def __init__(self, features: int) -> None:
        self.n = features
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.children: dict[str, nn.Module] = {}
        self.weights: list[str] = []
        self._body: dict[str, list[str]] = {"plain": [], "reference": []}
        self._methods: dict[str, list[str]] = {"plain": [], "reference": []}

    def add(self, index: int, line: Line) -> None:
        """Write one line into both forwards."""
        if line.child:
            child = random_module(line.child, self.n)
            self.children[f"child{index}"] = child
            self._write(*[f"x = self.child{index}(x, mask)"] * 2)
            self.n = type(child).features  # type: ignore[attr-defined]
        elif line.name in STATEMENTS:
            self._write(STATEMENTS[line.name], STATEMENTS[line.name])
        else:
            self._add_step(index, line)

    def _add_step(self, index: int, line: Line) -> None:
        step, n = STEPS[line.name], self.n
        m = n if step.same else line.features
        operands = step.weights | step.others
        if step.layer is None:
            own = {key: f"{key.lower()}{index}" for key in operands}
            self.shapes |= {own[key]: shape(n, m) for key, shape in operands.items()}
        else:
            self.children[f"layer{index}"] = step.layer(n, m)
            own = {key: f"layer{index}.{key}" for key in operands}
        self.weights += [own[key] for key in step.weights]
        read = {key: f"self.{path}" for key, path in own.items()}
        plain = reference = step.expression.format(x="x", layer=f"self.layer{index}", **read)
        if step.weights:
            inside = step.expression.format(
                x="x",
                layer=f"with_parameters(self.layer{index}, dict({_pairs(operands)}))",
                **{key: key for key in operands},
            )
            feedback = [f"self.feedback[{own[key]!r}]" for key in step.weights]
            arguments = (
                f"[{', '.join(entries)}]"
                for entries in (
                    [read[key] for key in step.weights],
                    feedback,
                    [read[key] for key in step.others],
                )
            )
            reference = f"graft(lambda {', '.join(['x', *operands])}: {inside}, x, {', '.join(arguments)})"
        context = line.context if step.weights or line.context == "residual" else ""
        self._write(
            *(CONTEXTS[context].format(value=f"({value})", i=index, m=m) for value in (plain, reference))
        )
        for kind, value in (("plain", plain), ("reference", reference)):
            self._methods[kind].append(f"def apply_{index}(self, x):\n    return {value}")
        self.n = n + m if context in ("residual", "no_grad", "flag") else m

    def _write(self, plain: str, reference: str) -> None:
        self._body["plain"].append(plain)
        self._body["reference"].append(reference)

    def written(self, kind: str) -> type[nn.Module]:
        """Return the class, whose source can be looked up as that of any user's."""
        forward = "def forward(self, x, mask=None):\n" + textwrap.indent(
            "\n".join([*self._body[kind], "return x"]), "    "
        )
        source = "class RandomModule(nn.Module):\n" + textwrap.indent(
            "\n".join([forward, *self._methods[kind]]), "    "
        )
        file = f"<random module {next(_numbers)}>"
        linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
        namespace = dict(vars(_Namespace), __name__="random_module")
        exec(compile(source, file, "exec"), namespace)
        made: type[nn.Module] = namespace["RandomModule"]
        made.source = source  # type: ignore[attr-defined]
        return made


def _pairs(names: Any) -> str:
    return ", ".join(f"{name}={name}" for name in names)


def graft(
    function: Callable[..., Tensor],
    x: Tensor,
    weights: list[Tensor],
    feedback: list[Tensor],
    others: list[Tensor],
) -> Tensor:
    """Return `function(x, *weights, *others)`, whose gradient below goes through the feedback weights."""
    if not torch.is_grad_enabled():
        return function(x, *weights, *others)
    below = function(x, *[F.detach() for F in feedback], *[other.detach() for other in others])
    return function(x.detach(), *weights, *others) + (below - below.detach())


class with_parameters:
    """A layer with other tensors in the place of its Parameters."""

    def __init__(self, layer: nn.Module, tensors: dict[str, Tensor]) -> None:
        self._layer, self._tensors = layer, tensors
        self.weight = tensors["weight"]

    def __call__(self, *args: Any) -> Any:
        """Call the layer."""
        return torch.func.functional_call(self._layer, self._tensors, args)


class _Namespace:
    torch, nn, F, checkpoint, graft, with_parameters = (
        torch,
        nn,
        functional,
        checkpoint,
        graft,
        with_parameters,
    )


def as_reference(module: nn.Module, feedback: Callable[[str], Tensor | None]) -> nn.Module:
    """Turn a module into its reference; `feedback` returns a Parameter's `F` by name, None for `F = W`."""
    for name, owner in list(module.named_modules()):
        reference = getattr(type(owner), "reference", None)
        if reference is not None:
            paths = {own: f"{name}.{own}" if name else own for own in type(owner).weights}  # type: ignore[attr-defined]
            found = {own: feedback(path) for own, path in paths.items()}
            owner.__class__ = reference
            owner.feedback = {
                own: owner.get_parameter(own).detach() if F is None else F for own, F in found.items()
            }  # type: ignore[assignment]
    return module


def applied_weights(module: nn.Module) -> set[str]:
    """Return the names of the Parameters that a random module and its children apply."""
    return {
        f"{name}.{own}" if name else own
        for name, owner in module.named_modules()
        for own in getattr(type(owner), "weights", ())
    }
