"""The claims that a conversion makes, for any model and its arguments, each checked against plain PyTorch.

A line of the table says `proved` if, in training and in evaluation:
- `convert` leaves the given model, every attribute of it, and the random numbers as they were;
- the converted model's outputs, the random numbers that it draws, and the buffers and attributes that its
  forward leaves behind equal the plain model's bit for bit;
- with `bp`, so do all gradients, the inputs' among them;
- in float64, with `F = W` sent through the feedback operation at every site, all gradients agree within 1e-10;
- with `fa`, the error below every site that was run differs from backpropagation's, and no learned weight is
  left that is applied without feedback and is not named with its reason;
- `revert` gives back the plain model's state, bit for bit, its classes and its attributes' names.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from account import Account
from effects import changes, differing, snapshot, values
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pfa_convert import convert, revert
from pfa_convert.verify import largest_difference
from pfa_convert.zoo.audit import ErrorsBelow, applied_plainly

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
TOLERANCE = 1e-10
"""For float64 gradients, relative to each Parameter's own norm or, where larger, a 1e-4 of the mean one's."""


@dataclass
class Findings:
    """The figures of a proof, and the claims that did not hold; as a line of the table, in this order."""

    model: str
    status: str = "failed"
    parameters: int = 0
    sites: int = 0
    applied: int = 0
    changed: int = 0
    skipped: int = 0
    forward: float = 0.0
    backpropagation: float = 0.0
    feedback: float = 0.0
    seconds: float = 0.0
    reasons: str = ""

    def claim(self, holds: bool, otherwise: str) -> None:
        """Note a claim that does not hold."""
        if not holds:
            self.note(otherwise)
            self.status = "failed"

    def note(self, text: str) -> None:
        """Add to the reasons."""
        self.reasons += ("; " if self.reasons else "") + text


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
    call = (args, kwargs)
    for step in (_prove_no_effects, _prove_equality, _prove_errors, _prove_feedback, _prove_the_way_back):
        try:
            step(model, call, findings)
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            findings.claim(False, f"{step.__name__.removeprefix('_prove_')}: {type(error).__name__}: {text}")
    findings.seconds = round(time.perf_counter() - started, 1)
    return findings


@torch.no_grad()
def with_values(model: nn.Module) -> None:
    """Move gains, biases and what starts at zero: behind a zero, no error would arrive to be compared."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and (parameter.dim() < 2 or not parameter.any()):
            parameter.add_(0.05 * torch.randn_like(parameter))


def run(model: nn.Module, call: Any, training: bool) -> Run:
    """Run a model forward and back from a fixed seed."""
    args, kwargs = tree_map(_leaf, call)
    model.train(training).zero_grad()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        outputs = model(*args, **kwargs)
        state, found = torch.get_rng_state(), values(model)
        loss(outputs).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    inputs = {f"input {n}": leaf.grad for n, leaf in enumerate(_tensors((args, kwargs))) if leaf.grad is not None}
    return Run(tree_map(_detached, outputs), gradients | inputs, state, found)


def _prove_no_effects(model: nn.Module, call: Any, findings: Findings) -> None:
    before, state = snapshot(model), torch.get_rng_state()
    report = convert(model, "fa").conversion
    findings.sites, findings.skipped = len(report.sites), len(report.skipped)
    findings.claim(torch.equal(state, torch.get_rng_state()), "convert draws random numbers")
    changed = changes(before, snapshot(model))
    findings.claim(not changed, f"convert changes {changed[:3]} of the given model")


def _prove_equality(model: nn.Module, call: Any, findings: Findings) -> None:
    for rule in ("fa", "bp"):
        for training in (True, False):
            theirs, ours = run(copy.deepcopy(model), call, training), run(convert(model, rule), call, training)
            mode = f"with {rule} in {'training' if training else 'evaluation'}"
            difference = largest_difference(ours.outputs, theirs.outputs)
            findings.forward = max(findings.forward, difference)
            findings.claim(difference == 0, f"{mode} the forward differs")
            findings.claim(torch.equal(ours.random_state, theirs.random_state), f"{mode} other random numbers")
            left = differing(ours.values, theirs.values)
            findings.claim(not left, f"{mode} the forward leaves other values: {left[:3]}")
            missing = ours.gradients.keys() ^ theirs.gradients.keys()
            findings.claim(not missing, f"{mode} other tensors get a gradient: {sorted(missing)[:3]}")
            if rule == "bp":
                shared = ours.gradients.keys() & theirs.gradients.keys()
                wrong = [n for n in shared if largest_difference(ours.gradients[n], theirs.gradients[n]) > 0]
                differences = [largest_difference(ours.gradients[n], theirs.gradients[n]) for n in wrong]
                findings.backpropagation = max([findings.backpropagation, *differences])
                findings.claim(not wrong, f"{mode} gradients differ: {sorted(wrong)[:3]}")


def _prove_errors(model: nn.Module, call: Any, findings: Findings) -> None:
    converted = convert(model, "fa")
    sites = {site.weight for site in converted.conversion.sites}
    named = {skipped.name for skipped in converted.conversion.skipped}
    layers = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, LAYERS)}
    accounted: set[str] = set()
    applied, changed, silent, unused = set(), set(), set(), set()
    left: set[str] = set()
    for training in (True, False):
        plain = copy.deepcopy(model).train(training)
        with Account(plain, call) as account, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            plain(*call[0], **call[1])
        accounted |= account.applied | (account.between & layers)
        args, kwargs = tree_map(_leaf, call)
        converted = convert(model, "fa").train(training)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            outputs = converted(*args, **kwargs)
            differentiable = [leaf for leaf in _tensors(outputs) if leaf.requires_grad]
            names = {parameter: path for path, parameter in converted.named_parameters()}
            claimed = {converted.get_parameter(name) for name in sites}
            errors = ErrorsBelow(differentiable, claimed)
            left |= {names.get(p, "an unnamed tensor") for p in applied_plainly(differentiable) | errors.foreign}
            loss(outputs).backward()
        applied |= {names[p] for p in errors.applied}
        changed |= {names[p] for p in errors.changed}
        silent |= {names[p] for p in errors.silent}
        unused |= {names[p] for p in claimed - errors.applied if p.grad is not None}
    findings.applied, findings.changed = len(applied), len(changed)
    same = sorted(applied - changed - silent)
    findings.claim(not same, f"fa leaves the error below {len(same)}: {same[:3]}")
    left |= accounted - {names[parameter] for parameter in claimed}
    unnamed = sorted(name for name in left if not any(_names(one, name) for one in named))
    findings.claim(not unnamed, f"{len(unnamed)} applied, but no site and not named: {unnamed[:3]}")
    findings.claim(not unused, f"{len(unused)} sites not through the feedback: {sorted(unused)[:3]}")
    if named:
        findings.note(f"{len(named)} named as no sites")


def _prove_feedback(model: nn.Module, call: Any, findings: Findings) -> None:
    model = copy.deepcopy(model)
    for precision in _PRECISIONS:
        with precision(findings) as cast:
            model, call = cast(model), tree_map(lambda leaf: cast(leaf) if _is_float(leaf) else leaf, call)
            try:
                theirs = run(copy.deepcopy(model), call, True).gradients
            except RuntimeError as error:
                if "ouble" not in str(error) and "dtype" not in str(error):
                    raise
                continue
            ours = run(convert(model, "bp", options={"strategy": "explicit"}), call, True).gradients
            break
    findings.claim(ours.keys() == theirs.keys(), "F = W gives other tensors a gradient")
    typical = sum(gradient.norm().item() for gradient in theirs.values()) / max(len(theirs), 1)
    for name in sorted(theirs.keys() & ours.keys()):
        scale = max(theirs[name].norm().item(), 1e-4 * typical, 1e-300)
        error = (ours[name] - theirs[name]).norm().item() / scale
        findings.feedback = float(f"{max(findings.feedback, error):.1e}")
        if not error <= TOLERANCE:
            findings.claim(False, f"with F = W the gradient of {name} differs by {error:.1e}")
            break


@contextmanager
def _double(_: Findings) -> Iterator[Any]:
    yield lambda value: value.double()


@contextmanager
def _double_by_default(findings: Findings) -> Iterator[Any]:
    torch.set_default_dtype(torch.float64)
    try:
        yield lambda value: value.double()
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def _single(findings: Findings) -> Iterator[Any]:
    findings.note("compared in float32, since the model does not run in float64")
    yield lambda value: value.float()


_PRECISIONS = (_double, _double_by_default, _single)


def _prove_the_way_back(model: nn.Module, call: Any, findings: Findings) -> None:
    converted = convert(model, "pfa")
    run(converted, call, True)
    plain = copy.deepcopy(model)
    run(plain, call, True)
    back, state = revert(converted, inplace=True), plain.state_dict()
    same = back.state_dict().keys() == state.keys() and not differing(back.state_dict(), state)
    findings.claim(same, "revert does not give back the state")
    classes = [type(module) for module in plain.modules()]
    findings.claim([type(module) for module in back.modules()] == classes, "revert leaves other classes")
    attributes = {key for key in snapshot(back)} ^ {key for key in snapshot(plain)}
    findings.claim(not attributes, f"revert leaves other attributes: {sorted(attributes)[:3]}")


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


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else None


def _names(skipped: str, parameter: str) -> bool:
    return parameter == skipped or parameter.startswith(f"{skipped}.")
