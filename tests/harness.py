"""What the tests share: the kit of `pfa_convert.testing`, and two abbreviations."""

import torch

from pfa_convert.testing import EXACT, Case, cases, gradients, literal, problem, relative_error

__all__ = [
    "EXACT",
    "Case",
    "cases",
    "error_below",
    "feedback_of",
    "gradients",
    "literal",
    "problem",
    "relative_error",
]


def feedback_of(module, name="weight"):
    return getattr(module, f"feedback_of_{name}")


def error_below(model, x, delta=None):
    x = x.clone().requires_grad_()
    output = model(x)
    output.backward(torch.ones_like(output) if delta is None else delta)
    return x.grad
