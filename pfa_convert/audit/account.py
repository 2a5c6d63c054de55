"""The account: what became of every Parameter in one run, and whether the conversion's report says so too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from pfa_convert.audit.observer import AMONG_WEIGHTS, Use
from pfa_convert.audit.place import FEEDBACK, PLAIN, WITHOUT_GRADIENT
from pfa_convert.feedback.strategy import Strategy
from pfa_convert.graph.report import ConversionReport
from pfa_convert.graph.uses import SCALE_OF_A_WEIGHT

SITE, SKIPPED, NO_LINEAR_MAP, NOT_REACHED, UNACCOUNTED = (
    "site",
    "skipped",
    "no linear map",
    "not reached",
    "unaccounted",
)


@dataclass(frozen=True)
class Entry:
    """What became of one Parameter.

    `status` is `site`, `skipped`, `no linear map`, `not reached` or `unaccounted`; `what` the rule of a site,
    the reason why it was skipped, what else it is used for, or what the account misses. `applied` says
    whether a linear map applied it in the run.
    """

    name: str
    shape: tuple[int, ...]
    status: str
    what: str
    applied: bool

    def __str__(self) -> str:
        """Return status and what it means."""
        return f"{self.status}: {self.what}" if self.what else self.status

    @property
    def elements(self) -> int:
        """The number of the Parameter's elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Account:
    """Every Parameter of two or more dimensions, and every other that a linear map applied, with its status.

    `uses` are the operations that the run applied Parameters in.
    """

    entries: tuple[Entry, ...]
    uses: tuple[Use, ...]

    @property
    def balanced(self) -> bool:
        """Whether every weight that a linear map applied is in a site, or is named with its reason."""
        return not self.unaccounted

    @property
    def unaccounted(self) -> tuple[Entry, ...]:
        """The Parameters that a linear map applied without feedback and that the report does not mention."""
        return self.having(UNACCOUNTED)

    @property
    def share(self) -> float:
        """The percentage of the elements of all weights applied in the run that are in sites."""
        applied = sum(entry.elements for entry in self.entries if entry.applied)
        in_sites = sum(entry.elements for entry in self.having(SITE) if entry.applied)
        return 100 * in_sites / applied if applied else 100.0

    def having(self, status: str) -> tuple[Entry, ...]:
        """Return the entries of one status."""
        return tuple(entry for entry in self.entries if entry.status == status)

    def to_dict(self) -> dict[str, Any]:
        """Return the account as plain data for JSON."""
        return {
            "balanced": self.balanced,
            "share": self.share,
            "entries": [asdict(entry) for entry in self.entries],
            "uses": [asdict(use) for use in self.uses],
        }

    def __str__(self) -> str:
        """Return one line for each Parameter, and the balance."""
        lines = [f"{entry.name:<44} {'x'.join(map(str, entry.shape)):<16} {entry}" for entry in self.entries]
        counts = [f"{len(self.having(status))} {status}" for status in _STATUSES if self.having(status)]
        verdict = "the account balances" if self.balanced else "the account does NOT balance"
        return "\n".join([*lines, f"{', '.join(counts)}: {verdict}"])


_STATUSES = (SITE, SKIPPED, NO_LINEAR_MAP, NOT_REACHED, UNACCOUNTED)


def draw_up(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    uses: Iterable[Use],
    read: set[str],
) -> Account:
    """Return the account of a run, compared with the reports of the model's and its parts' conversions."""
    uses = tuple(uses)
    by_parameter: dict[str, list[Use]] = {name: [] for name in parameters}
    for use in uses:
        for name in use.parameters:
            by_parameter[name].append(use)
    claims = _Claims(model, parameters)
    with_feedback = {
        name for use in uses if use.linear and use.way == FEEDBACK for name in use.parameters
    } & claims.rules.keys()
    entries = []
    for name, parameter in parameters.items():
        mine = by_parameter[name]
        if parameter.dim() < 2 and name not in claims.rules:
            mine = [use for use in mine if use.linear and "sum" not in use.operation]
            mine = (
                mine if any(use.way in (PLAIN, FEEDBACK) and len(use.parameters) == 1 for use in mine) else []
            )
        if parameter.dim() >= 2 or mine or name in claims.rules:
            entries.append(_entry(name, parameter, mine, name in read, claims, with_feedback))
    return Account(tuple(entries), uses)


class _Claims:
    """What a conversion's report says of each Parameter, by the name that the account gives it."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        names = {parameter: name for name, parameter in parameters.items()}
        self.rules: dict[str, str] = {}
        self.native: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.scales: set[str] = set()
        for path, part in model.named_modules():
            report = getattr(part, "conversion", None)
            if not isinstance(report, ConversionReport):
                continue
            for site in report.sites:
                name = names.get(part.get_parameter(site.weight))
                if name is not None:
                    self.rules[name] = site.rule
                    self.native |= {name} if site.strategy == Strategy.NATIVE else set()
            for other in report.others:
                if other.use == SCALE_OF_A_WEIGHT:
                    self.scales.add(names.get(part.get_parameter(other.name), ""))
            for one in report.skipped:
                parameter = _parameter_called(part, one.name)
                name = f"{path}.{one.name}".strip(".") if parameter is None else names.get(parameter, "")
                self.skipped[name] = one.reason

    def reason(self, name: str) -> str | None:
        """Return why a Parameter was skipped, itself or a module that holds it."""
        while name:
            if name in self.skipped:
                return self.skipped[name]
            name = name.rpartition(".")[0]
        return self.skipped.get("")


def _entry(
    name: str,
    parameter: Tensor,
    uses: list[Use],
    read: bool,
    claims: _Claims,
    with_feedback: set[str],
) -> Entry:
    linear = [use for use in uses if use.linear]
    plain = [use for use in linear if use.way == PLAIN]
    inside = [use for use in linear if use.way == FEEDBACK]
    rule, reason = claims.rules.get(name), claims.reason(name)

    def entry(status: str, what: str) -> Entry:
        return Entry(name, tuple(parameter.shape), status, what, bool(plain or inside))

    if name in claims.scales and plain and all(not claims.native.isdisjoint(u.parameters) for u in plain):
        return entry(NO_LINEAR_MAP, "scale of a weight with backpropagation")
    if plain and name not in claims.native:
        if rule is None and reason is not None:
            return entry(SKIPPED, reason)
        return entry(UNACCOUNTED, "; ".join(dict.fromkeys(map(_described, plain))))
    if (plain or inside) and rule is not None:
        return entry(SITE, rule)
    if inside:
        together = sorted({other for use in inside for other in use.parameters} & with_feedback)
        if together:
            return entry(NO_LINEAR_MAP, f"part of the weight that {together[0]} is in")
        return entry(UNACCOUNTED, f"no site in the report, though {_described(inside[0])}")
    if reason is not None:
        return entry(SKIPPED, reason)
    if not read:
        return entry(NOT_REACHED, "")
    others = list(_other_uses(uses))
    if rule is not None and not others:
        return entry(NOT_REACHED, "")
    if rule is not None:
        others.append("though the report calls it a site")
    return entry(NO_LINEAR_MAP, ", ".join(others) or "nothing that meets an activation")


def _other_uses(uses: Iterable[Use]) -> Iterator[str]:
    described = {AMONG_WEIGHTS: "computes a weight", WITHOUT_GRADIENT: "applied without gradients"}
    return iter(dict.fromkeys(described.get(use.way, use.way) for use in uses))


def _described(use: Use) -> str:
    where = f" in {use.module}" if use.module else ""
    how = "with feedback" if use.way == FEEDBACK else "without feedback"
    return f"{use.operation} ({use.operand}) applies it {how}{where} ({use.line})"


def _parameter_called(module: nn.Module, name: str) -> Tensor | None:
    try:
        return module.get_parameter(name)
    except (AttributeError, KeyError):
        return None
