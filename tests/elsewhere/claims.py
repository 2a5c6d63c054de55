"""The claims that a conversion makes, for any model and its arguments, each checked against plain PyTorch.

A line of the table says `proved` if, in training and in evaluation:
- `convert` leaves the given model, every attribute of it, and the random numbers as they were;
- the converted model's outputs, the random numbers that it draws, and the buffers and attributes that its
  forward leaves behind equal the plain model's bit for bit;
- with `bp`, so do all gradients, the inputs' among them;
- in float64, with `F = W` sent through the feedback operation at every site, gradients agree within 1e-10;
- in float64, with `F = 2 W`, gradients agree within 1e-10 with those of the plain model whose recorded graph
  doubles the error below each application of a weight: no use of a weight goes without feedback;
- what the dispatcher saw multiplied with activations is a site, or is named with its reason, by this
  folder's account and by the package's own;
- `revert` gives back the plain model's state, bit for bit, its classes and its attributes' names.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from account import Account
from doubled import Doubling
from effects import changes, differing, snapshot, values
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pfa_convert import convert, revert
from pfa_convert.alignment import feedback_of
from pfa_convert.audit.verify import verify
from pfa_convert.comparison import largest_difference
from pfa_convert.graph.sites import NOT_REACHED

TOLERANCE = 1e-10
"""For float64 gradients, relative to each Parameter's own norm or, where larger, a 1e-4 of the mean one's."""

IN_SINGLE = 1e-5
"""The same for a model that does not run in float64."""


@dataclass
class Findings:
    """The figures of a proof, and the claims that did not hold; as a line of the table, in this order.

    `sites` counts weights in sites and `applied` those of them that this run applied, by autograd's record;
    `by_example` counts those that a conversion with an example finds. `unchanged` of the applied have `F =
    W` in the claim about `F = 2 W`, since the weight is not linear in the Parameter, or in several. `named`
    counts what the report skips; `forward` and `backpropagation` are the largest differences, `feedback` and
    `doubled` the largest relative ones.
    """

    model: str
    status: str = "failed"
    parameters: int = 0
    sites: int = 0
    by_example: int = 0
    applied: int = 0
    unchanged: int = 0
    named: int = 0
    forward: float = 0.0
    backpropagation: float = 0.0
    feedback: float = 0.0
    doubled: float = 0.0
    seconds: float = 0.0
    reasons: str = ""

    def claim(self, holds: bool, otherwise: str) -> None:
        """Note a claim that does not hold."""
        if not holds:
            self.note(otherwise)
            self.status = "failed"

    def note(self, text: str) -> None:
        """Add to the reasons."""
        if text not in self.reasons:
            self.reasons += ("; " if self.reasons else "") + text


@dataclass(frozen=True)
class Call:
    """A model's arguments; `differentiable` says that gradients of the inputs are asked for, too."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    differentiable: bool = True

    def on(self, model: nn.Module) -> tuple[Any, list[Tensor]]:
        """Return the outputs, and the inputs that get gradients."""
        args, kwargs = tree_map(_leaf if self.differentiable else _copied, (self.args, self.kwargs))
        inputs = [leaf for leaf in _tensors((args, kwargs)) if leaf.requires_grad]
        return model(*args, **kwargs), inputs

    def convert(self, model: nn.Module, rule: str, **options: Any) -> Any:
        """Return the model converted with this call as its example."""
        return convert(model, rule, example=(self.args, self.kwargs), **options)

    def cast(self, to: Callable[[Tensor], Tensor]) -> Call:
        """Return the call with its floating-point inputs cast."""
        args, kwargs = tree_map(lambda leaf: to(leaf) if _is_float(leaf) else leaf, (self.args, self.kwargs))
        return Call(args, kwargs, self.differentiable)


@dataclass(frozen=True)
class Run:
    """What a model made of its arguments: outputs, gradients, and what was different afterwards."""

    outputs: Any
    gradients: dict[str, Tensor]
    random_state: Tensor
    values: dict[str, Any]


def prove(name: str, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Findings:
    """Prove one model's conversion; what raises is a finding too."""
    started = time.perf_counter()
    findings = Findings(name, "proved", sum(p.numel() for p in model.parameters()))
    with_values(model)
    call = Call(args, kwargs)
    try:
        run(copy.deepcopy(model), call, True)
    except RuntimeError as error:
        findings.note(f"without gradients of the inputs, which the plain model does not give: {_text(error)}")
        call = Call(args, kwargs, False)
    for step in (_prove_no_effects, _prove_equality, _prove_account, _prove_feedback, _prove_the_way_back):
        try:
            step(model, call, findings)
        except Exception as error:
            findings.claim(False, f"{step.__name__.removeprefix('_prove_')}: {_text(error)}")
    findings.seconds = round(time.perf_counter() - started, 1)
    return findings


@torch.no_grad()
def with_values(model: nn.Module) -> None:
    """Move gains, biases and what starts at zero: behind a zero, no error would arrive to be compared.

    What the library left uninitialised (open_clip's CoCa, for a checkpoint to fill) gets values, too.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and not bool((parameter.abs() < 100).all()):
            parameter.normal_(std=0.05)
        if parameter.is_floating_point() and (parameter.dim() < 2 or not parameter.any()):
            parameter.add_(0.05 * torch.randn_like(parameter))


def run(model: nn.Module, call: Call, training: bool, between: Callable[[Any], Any] | None = None) -> Run:
    """Run a model forward and back from a fixed seed; `between` is given the differentiable outputs."""
    model.train(training).zero_grad()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        outputs, inputs = call.on(model)
        state, found = torch.get_rng_state(), values(model)
        if between is not None:
            between([leaf for leaf in _tensors(outputs) if leaf.requires_grad])
        loss(outputs).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients |= {f"input {n}": leaf.grad for n, leaf in enumerate(inputs) if leaf.grad is not None}
    return Run(tree_map(_detached, outputs), gradients, state, found)


def _prove_no_effects(model: nn.Module, call: Call, findings: Findings) -> None:
    before, state = snapshot(model), torch.get_rng_state()
    reports = convert(model, "fa").conversion, call.convert(model, "fa").conversion
    findings.sites, findings.by_example = (len({site.weight for site in report.sites}) for report in reports)
    findings.named = len(reports[1].skipped)
    findings.claim(torch.equal(state, torch.get_rng_state()), "convert draws random numbers")
    changed = changes(before, snapshot(model))
    findings.claim(not changed, f"convert changes {changed[:3]} of the given model")


def _prove_equality(model: nn.Module, call: Call, findings: Findings) -> None:
    for rule in ("fa", "bp"):
        for training in (True, False):
            theirs, ours = (
                run(copy.deepcopy(model), call, training),
                run(call.convert(model, rule), call, training),
            )
            mode = f"with {rule} in {'training' if training else 'evaluation'}"
            difference = largest_difference(ours.outputs, theirs.outputs)
            findings.forward = max(findings.forward, difference)
            findings.claim(difference == 0, f"{mode} the forward differs")
            findings.claim(
                torch.equal(ours.random_state, theirs.random_state), f"{mode} other random numbers"
            )
            left = differing(ours.values, theirs.values)
            findings.claim(not left, f"{mode} the forward leaves other values: {left[:3]}")
            missing = ours.gradients.keys() ^ theirs.gradients.keys()
            findings.claim(not missing, f"{mode} other tensors get a gradient: {sorted(missing)[:3]}")
            if rule == "bp":
                shared = ours.gradients.keys() & theirs.gradients.keys()
                apart = {n: largest_difference(ours.gradients[n], theirs.gradients[n]) for n in shared}
                wrong = sorted(name for name in shared if apart[name] > 0)
                findings.backpropagation = max(findings.backpropagation, *apart.values(), 0.0)
                findings.claim(not wrong, f"{mode} gradients differ: {wrong[:3]}")


def _prove_account(model: nn.Module, call: Call, findings: Findings) -> None:
    seen: set[str] = set()
    for training in (True, False):
        plain = copy.deepcopy(model).train(training)
        with Account(plain, (call.args, call.kwargs)) as account, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            plain(*call.args, **call.kwargs)
        seen |= account.applied
    canonical = {parameter: name for name, parameter in model.named_parameters()}
    for converted, when in ((convert(model, "fa"), ""), (call.convert(model, "fa"), "with an example ")):
        report = converted.conversion
        sites = {canonical[model.get_parameter(site.weight)] for site in report.sites}
        named = [one.name for one in report.skipped]
        allowed = COMPUTES if when else (*COMPUTES, NOT_REACHED)
        named += [one.name for one in report.others if one.use in allowed]
        left = sorted(
            n for n in seen - sites if not any(n == one or n.startswith(f"{one}.") for one in named)
        )
        findings.claim(not left, f"{when}{len(left)} applied, but no site and not named: {left[:3]}")
        balance = verify(converted, *call.args, **call.kwargs)
        open_ones = [entry.name for entry in balance.unaccounted]
        findings.claim(balance.balanced, f"{when}the account does not balance: {open_ones[:3]}")
    if report.skipped:
        findings.note(f"named as no sites: {'; '.join(sorted({one.reason for one in report.skipped}))}")


COMPUTES = ("scale of a weight", "computes a weight")
"""What the report says of a Parameter that takes part in computing a weight without being one."""


def _prove_feedback(model: nn.Module, call: Call, findings: Findings) -> None:
    model = copy.deepcopy(model).requires_grad_(True)
    for precision in (_double, _double_by_default, _single):
        with precision(findings) as to:
            cast, cast_call = to(copy.deepcopy(model)), call.cast(to)
            try:
                theirs = run(copy.deepcopy(cast), cast_call, True)
            except RuntimeError:
                if precision is _single:
                    raise
                continue
            ours = run(cast_call.convert(cast, "bp", options={"strategy": "explicit"}), cast_call, True)
            findings.feedback = _compare(ours, theirs, "with F = W", findings)
            for training in (True, False):
                _prove_doubled(cast, cast_call, training, findings)
            return


def _prove_doubled(model: nn.Module, call: Call, training: bool, findings: Findings) -> None:
    plain, converted = copy.deepcopy(model), call.convert(model, "fa")
    named = {plain.get_parameter(n) for n in _parameters_of(plain, converted.conversion.skipped)}
    found: list[Doubling] = []
    theirs = run(plain, call, training, lambda outputs: found.append(Doubling(plain, outputs, named)))
    unrecorded = {p for name, p in plain.named_parameters() if name not in theirs.gradients}  # as by `.data`
    ours = run(doubled(converted, plain, found[0].unchanged | unrecorded), call, training)
    findings.doubled = max(findings.doubled, _compare(ours, theirs, "with F = 2 W", findings))
    findings.applied = max(findings.applied, len(found[0].applied))
    findings.unchanged = max(findings.unchanged, len(found[0].unchanged & found[0].applied))


def doubled(converted: nn.Module, plain: nn.Module, unchanged: set[Tensor]) -> nn.Module:
    """Return the converted model with `F = 2 W`, and `F = W` for the Parameters of `plain` that are given."""
    with torch.no_grad():
        for site in converted.conversion.sites:  # type: ignore[union-attr]
            factor = 1 if plain.get_parameter(site.weight) in unchanged else 2
            feedback_of(converted, site.weight).F0.copy_(factor * converted.get_parameter(site.weight))
    return converted


def _parameters_of(model: nn.Module, skipped: Any) -> list[str]:
    named = tuple(one.name for one in skipped)
    return [
        n
        for n, _ in model.named_parameters()
        if n in named or n.startswith(tuple(f"{one}." for one in named))
    ]


def _compare(ours: Run, theirs: Run, when: str, findings: Findings) -> float:
    """Return the largest relative difference of two runs' gradients, and claim that there is none."""
    differ = sorted(ours.gradients.keys() ^ theirs.gradients.keys())
    findings.claim(not differ, f"{when} other tensors get a gradient: {differ[:3]}")
    typical = sum(gradient.norm().item() for gradient in theirs.gradients.values()) / max(
        len(theirs.gradients), 1
    )
    errors = {}
    for name in ours.gradients.keys() & theirs.gradients.keys():
        a, b = ours.gradients[name], theirs.gradients[name]
        errors[name] = (a - b).norm().item() / max(b.norm().item(), 1e-4 * typical, 1e-300)
    double = all(
        gradient.dtype in (torch.float64, torch.complex128) for gradient in theirs.gradients.values()
    )
    allowed = TOLERANCE if double else IN_SINGLE
    wrong = sorted((name for name in errors if not errors[name] <= allowed), key=errors.__getitem__)
    findings.claim(
        not wrong, f"{when} {len(wrong)} gradients differ: {[f'{n} {errors[n]:.1e}' for n in wrong[-3:]]}"
    )
    return float(f"{max(errors.values(), default=0.0):.1e}")


@contextmanager
def _double(_: Findings) -> Iterator[Any]:
    yield lambda value: value.double()


@contextmanager
def _double_by_default(_: Findings) -> Iterator[Any]:
    torch.set_default_dtype(torch.float64)
    try:
        yield lambda value: value.double()
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def _single(findings: Findings) -> Iterator[Any]:
    findings.note("compared in float32, since the model does not run in float64")
    with nullcontext():
        yield lambda value: value.float()


def _prove_the_way_back(model: nn.Module, call: Call, findings: Findings) -> None:
    converted, plain = call.convert(model, "pfa"), copy.deepcopy(model)
    run(converted, call, True)
    run(plain, call, True)
    back, state = revert(converted, inplace=True), plain.state_dict()
    same = back.state_dict().keys() == state.keys() and not differing(back.state_dict(), state)
    findings.claim(same, "revert does not give back the state")
    classes = [type(module) for module in plain.modules()]
    findings.claim([type(module) for module in back.modules()] == classes, "revert leaves other classes")
    attributes = sorted(set(snapshot(back)) ^ set(snapshot(plain)))
    findings.claim(not attributes, f"revert leaves other attributes: {attributes[:3]}")


def loss(outputs: Any) -> Tensor:
    """Return a sum of the outputs with fixed random weights, so that no error cancels."""
    generator = torch.Generator().manual_seed(1)
    terms = []
    for output in _tensors(outputs):
        if output.requires_grad:
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
            terms.append((output * weights).nan_to_num(0, 0, 0).mean().to(torch.float64))
    return torch.stack(terms).sum()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _leaf(leaf: Any) -> Any:
    return leaf.clone().requires_grad_() if _is_float(leaf) else leaf


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else None


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
