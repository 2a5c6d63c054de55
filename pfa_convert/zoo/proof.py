"""The proof, for one model, that its conversion is right: real weights, a small batch, every claim.

A line says `proved` if all of these hold:
- the forward of the converted model equals the plain one's bit for bit, in training and in evaluation;
- with `bp`, every gradient equals the plain model's bit for bit;
- in float64, with `F = W` sent through the feedback operation at every site, every gradient equals the
  plain model's within 1e-10;
- with `fa`, the error below every site that was run differs from backpropagation's;
- the account of both runs balances (`pfa_convert.verify`): PyTorch's dispatcher saw no linear map of a
  learned weight but in the feedback pass, or the conversion's report names it;
- `revert` gives back the plain model's state, bit for bit, and its classes.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pfa_convert.alignment import feedback_of, report_of
from pfa_convert.audit.account import SITE, SKIPPED
from pfa_convert.audit.verify import verify_both_modes
from pfa_convert.comparison import largest_difference, run_once, undisturbed
from pfa_convert.convert import convert, revert
from pfa_convert.models import build
from pfa_convert.zoo.coverage import build_on_meta
from pfa_convert.zoo.errors import ErrorsBelow
from pfa_convert.zoo.runs import (
    differentiable,
    double,
    gradients,
    loss,
    single,
    smallest_inputs,
    with_gradients,
    without_zeros,
)
from pfa_convert.zoo.sweep import kind_and_text, time_limit

TOLERANCE = 1e-10
"""For float64 gradients, relative to each Parameter's own or, where larger, a 1e-4 of the mean one's norm.

The second is for gradients that are zero but for rounding: a bias in front of a BatchNorm's."""


@dataclass(frozen=True)
class Proof:
    """One line of the table. `parameters` counts elements, `size` is that of the images in pixels.

    `forward` is the largest difference of an output, `backpropagation` that of a gradient with `bp`,
    `feedback` the largest relative one with `F = W`; `changed` is the number of weights below which `fa`
    changes the error, of `applied`, those that a forward pass applied.
    """

    model: str
    status: str
    parameters: int = 0
    size: str = ""
    sites: int = 0
    applied: int = 0
    changed: int = 0
    forward: float = 0.0
    backpropagation: float = 0.0
    feedback: float = 0.0
    seconds: float = 0.0
    reasons: str = ""


@dataclass
class _Findings:
    """The figures of a proof as they are found, and the claims that did not hold."""

    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def claim(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.failures.append(otherwise)


def prove(name: str, largest: float = math.inf, limit: int = 900) -> Proof | None:
    """Prove one model's conversion and return its line; an exception or a time-out is a line too.

    A model of more than `largest` parameters is left out: the answer is None.
    """
    started = time.perf_counter()
    findings = _Findings()
    try:
        with time_limit(limit):
            if largest < math.inf and _elements(build_on_meta(name)) > largest:
                return None
            torch.manual_seed(0)
            _prove(name, findings)
    except Exception as error:
        findings.failures.append(kind_and_text(error))
    return Proof(
        model=name,
        status="failed" if findings.failures else "proved",
        seconds=round(time.perf_counter() - started, 1),
        reasons="; ".join(findings.failures + findings.notes),
        **findings.figures,
    )


def _prove(name: str, findings: _Findings) -> None:
    plain = build(name)
    without_zeros(plain)
    findings.figures["parameters"] = _elements(plain)
    size, inputs = smallest_inputs(name, plain)
    findings.figures["size"] = "own" if size is None else str(size)

    _prove_forward_and_errors(plain, inputs, findings)
    _prove_backpropagation(plain, inputs, findings)
    _prove_feedback(plain, inputs, findings)


def _prove_forward_and_errors(plain: nn.Module, inputs: Any, findings: _Findings) -> None:
    reference, converted = copy.deepcopy(plain), convert(plain, "fa")
    account = verify_both_modes(converted, *inputs)
    findings.figures["sites"] = len({site.weight for site in report_of(converted).sites})
    skipped = account.having(SKIPPED)
    if skipped:
        findings.notes.append(f"{len(skipped)} weights are no sites, as the conversion reports")
    missed = "; ".join(f"{entry.name}: {entry.what}" for entry in account.unaccounted[:1])
    findings.claim(account.balanced, f"{len(account.unaccounted)} unaccounted, such as {missed}")

    sites = {entry.name for entry in account.having(SITE) if entry.applied}
    weights: dict[Tensor, str] = {converted.get_parameter(name): name for name in sites}
    forward, changed, silent, direct = 0.0, set[str](), set[str](), set[str]()
    for training in (True, False):
        theirs = run_once(reference, training, inputs)
        with undisturbed(converted, training):
            outputs = converted(*with_gradients(inputs))
            forward = max(forward, largest_difference(outputs, theirs))
            errors = ErrorsBelow(differentiable(outputs), set(weights))
            loss(outputs).backward()
        direct |= {weights[weight] for weight in errors.applied}
        changed |= {weights[weight] for weight in errors.changed}
        silent |= {weights[weight] for weight in errors.silent}
    grafted = sites - direct
    changed |= {name for name in grafted if _moves_the_error(converted, name, inputs)}
    findings.figures |= {"forward": forward, "applied": len(sites), "changed": len(changed)}
    findings.claim(forward == 0, "the forward differs")
    same = sorted(sites - changed - silent)
    findings.claim(not same, f"fa leaves the error below {', '.join(same[:1])}, {len(same)} in all")
    _prove_the_way_back(plain, converted, findings)


def _moves_the_error(converted: nn.Module, weight: str, inputs: Any) -> bool:
    """Say whether another feedback weight gives another gradient somewhere, the inputs' included.

    For products that are computed twice: what autograd records of them names no feedback operation.
    """
    feedback = feedback_of(converted, weight)
    if feedback is None:
        return False
    state = [tensor for tensor in feedback.state() if tensor is not None]
    found = []
    for factor in (1.0, 3.0):
        for tensor in state:
            tensor.data.mul_(factor)
        given = with_gradients(inputs)
        converted.zero_grad()
        with undisturbed(converted, True):
            loss(converted(*given)).backward()
        tensors = [
            *converted.parameters(),
            *(leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)),
        ]
        found.append([tensor.grad.clone() for tensor in tensors if tensor.grad is not None])
        for tensor in state:
            tensor.data.div_(factor)
    return any(not torch.equal(a, b) for a, b in zip(*found, strict=True))


def _prove_the_way_back(plain: nn.Module, converted: nn.Module, findings: _Findings) -> None:
    back, state = revert(converted, inplace=True), plain.state_dict()
    same = back.state_dict().keys() == state.keys() and all(
        torch.equal(value, state[key]) for key, value in back.state_dict().items()
    )
    findings.claim(same, "revert does not give back the state")
    classes = [type(module) for module in plain.modules()]
    findings.claim([type(module) for module in back.modules()] == classes, "revert leaves other classes")


def _prove_backpropagation(plain: nn.Module, inputs: Any, findings: _Findings) -> None:
    theirs, ours = gradients(copy.deepcopy(plain), inputs), gradients(convert(plain, "bp"), inputs)
    findings.claim(ours.keys() == theirs.keys(), "bp gives other parameters a gradient")
    difference = max(largest_difference(ours[name], theirs[name]) for name in theirs)
    findings.figures["backpropagation"] = difference
    findings.claim(difference == 0, "bp's gradients differ")


def _prove_feedback(plain: nn.Module, inputs: Any, findings: _Findings) -> None:
    plain, inputs = plain.double(), tree_map(double, inputs)
    try:
        run_once(copy.deepcopy(plain), True, inputs)
    except RuntimeError as error:
        if "Double" not in str(error):
            raise
        findings.notes.append("compared in float32, since the model does not run in float64")
        plain, inputs = plain.float(), tree_map(single, inputs)
    theirs = gradients(copy.deepcopy(plain), inputs)
    ours = gradients(convert(plain, "bp", options={"strategy": "explicit"}), inputs)
    findings.claim(ours.keys() == theirs.keys(), "F = W gives other parameters a gradient")
    typical = sum(gradient.norm().item() for gradient in theirs.values()) / len(theirs)
    errors = {
        name: ((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-4 * typical)).item()
        for name in theirs
    }
    worst = max(errors, key=errors.__getitem__)
    findings.figures["feedback"] = float(f"{errors[worst]:.1e}")
    findings.claim(errors[worst] <= TOLERANCE, f"with F = W the gradient of {worst} differs")


def _elements(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
