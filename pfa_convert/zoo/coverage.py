"""What of each model is converted, by the account of two runs: which weights are in sites, which not."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pfa_convert.audit.account import NO_LINEAR_MAP, NOT_REACHED, SITE, SKIPPED, UNACCOUNTED, Account
from pfa_convert.audit.verify import verify_both_modes
from pfa_convert.convert import convert
from pfa_convert.models import build, example
from pfa_convert.zoo.sweep import kind_and_text, time_limit

LARGEST_IN_MEMORY = 400e6
"""Parameters of a model that is run with memory, where it does not run without."""


@dataclass(frozen=True)
class Coverage:
    """One line of the table: what became of one model's Parameters, in training and in evaluation.

    `status` is `balanced`, `unbalanced` or `failed`. `share` is the percentage, by elements, of the weights
    that a linear map applied in the runs that are in sites. The counts are of Parameters: `sites`, `skipped`
    with a reason, `unaccounted`, of two or more dimensions and used otherwise (`no_linear_map`) or not at
    all (`not_reached`). `functional` counts the sites that a module applies itself, `kinds` the sites by
    kind. `device` says where the model ran: `meta` needs no memory. `seconds` is the conversion's.
    """

    model: str
    status: str
    share: float = 0.0
    sites: int = 0
    skipped: int = 0
    unaccounted: int = 0
    no_linear_map: int = 0
    not_reached: int = 0
    functional: int = 0
    device: str = ""
    seconds: float = 0.0
    kinds: str = ""
    reasons: str = ""


def check(name: str, limit: int = 600) -> Coverage:
    """Convert a model, run it, and return its line; a failure or a time-out is a line too."""
    try:
        with time_limit(limit):
            return _check(name)
    except Exception as error:
        return Coverage(name, "failed", reasons=kind_and_text(error))


def _check(name: str) -> Coverage:
    model = build_on_meta(name)
    size = sum(parameter.numel() for parameter in model.parameters())
    try:
        model, seconds = _converted(model)
        account, device = verify_both_modes(model, *tree_map(_to_meta, example(name))), "meta"
    except Exception:
        if size > LARGEST_IN_MEMORY:
            raise
        model, seconds = _converted(build(name))
        account, device = verify_both_modes(model, *example(name)), "cpu"
    return _line(name, model, account, device, seconds)


def _converted(model: nn.Module) -> tuple[nn.Module, float]:
    started = time.perf_counter()
    converted = convert(model, "fa", inplace=True)
    return converted, round(time.perf_counter() - started, 2)


def _line(name: str, model: Any, account: Account, device: str, seconds: float) -> Coverage:
    sites = model.conversion.sites
    counts = Counter(entry.status for entry in account.entries)
    unaccounted = [f"unaccounted: {entry.name}: {entry.what}" for entry in account.unaccounted]
    skipped = Counter(entry.what for entry in account.having(SKIPPED))
    return Coverage(
        model=name,
        status="balanced" if account.balanced else "unbalanced",
        share=round(account.share, 3),
        sites=counts[SITE],
        skipped=counts[SKIPPED],
        unaccounted=counts[UNACCOUNTED],
        no_linear_map=counts[NO_LINEAR_MAP],
        not_reached=counts[NOT_REACHED],
        functional=sum(site.kind.endswith("()") for site in sites),
        device=device,
        seconds=seconds,
        kinds=" ".join(f"{kind}:{n}" for kind, n in Counter(site.kind for site in sites).items()),
        reasons="; ".join(
            [
                *unaccounted[:3],
                *(f"{count} x {reason}" for reason, count in skipped.items()),
                *[f"not reached: {entry.name}" for entry in account.having(NOT_REACHED)[:3]],
            ]
        ),
    )


def build_on_meta(name: str) -> nn.Module:
    """Return the model without memory for its weights."""
    try:
        with torch.device("meta"):
            return build(name)
    except NotImplementedError:  # its constructor reads values that a meta tensor does not have
        return build(name).to("meta")


def _to_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, Tensor) else leaf
