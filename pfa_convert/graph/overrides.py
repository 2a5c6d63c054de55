"""Which rule each site gets: the default, unless an override matches it; the first match wins."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from pfa_convert.errors import UserError
from pfa_convert.graph.sites import Site
from pfa_convert.rules import Rule, make_rule

_RESERVED = {"match": str, "type": str, "rule": str, "options": Mapping}
"""An override's own keys and what they hold; any other is an attribute of the layer."""


@dataclass(frozen=True)
class Decision:
    """A site, the rule it gets, and why."""

    site: Site
    rule: Rule
    reason: str


def listed(overrides: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return overrides as a list; `{PATTERN: RULE}` is one of them too, RULE a name or further keys.

    Raises:
        UserError: for an entry that is no mapping.
    """
    if isinstance(overrides, Mapping):
        return [
            {"match": pattern, **(rule if isinstance(rule, Mapping) else {"rule": rule})}
            for pattern, rule in overrides.items()
        ]
    entries = list(overrides)
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            problem = f"{entry!r} is not a mapping such as {{'match': 'fc', 'rule': 'bp'}}"
            raise UserError(problem, where=f"overrides[{index}]")
    return entries


def decide(
    model: nn.Module,
    sites: Sequence[Site],
    rule: str,
    options: Mapping[str, Any],
    overrides: Sequence[Mapping[str, Any]],
) -> list[Decision]:
    """Decide a rule for each site.

    Raises:
        UserError: for an unknown rule or option, a malformed override, or one that matches no site.
    """
    layouts = [site.layout for site in sites]
    default = make_rule(rule, options)
    shared: dict[Tensor, Decision] = {}
    for index, override in enumerate(overrides):
        _refuse_wrong_types(override, f"overrides[{index}]")
    chosen = [
        (_Matcher(override, index), *_override_rule(override, index, rule, options))
        for index, override in enumerate(overrides)
    ]
    used: set[int] = set()
    decisions = []
    for site in sites:
        decision = Decision(site, default, "default")
        for index, (matcher, override_rule, where) in enumerate(chosen):
            if matcher(model, site):
                used.add(index)
                decision = Decision(site, override_rule, where)
                break
        first = shared.setdefault(model.get_parameter(site.weight), decision)
        if first.rule != decision.rule:
            decision = Decision(site, first.rule, f"shares the weight of {first.site.name}")
        obstacle = decision.rule.obstacle(site.layout)
        if obstacle is not None:
            decision = Decision(site, make_rule("bp"), obstacle)
        decisions.append(replace(decision, rule=decision.rule.for_model(layouts)))
    for index, (matcher, _, where) in enumerate(chosen):
        if index not in used and not any(matcher(model, site) for site in sites):
            matcher.refuse_unknown_attributes(model, sites, where)
            choices = {s.kind for s in sites} if matcher.pattern is None else {s.name for s in sites}
            raise UserError(
                f"{matcher} matches no site",
                where=where,
                given=matcher.pattern or matcher.kind,
                choices=choices,
            )
    return decisions


def _refuse_wrong_types(override: Mapping[str, Any], where: str) -> None:
    for key, kind in _RESERVED.items():
        if not isinstance(override.get(key), kind | None):
            wanted = "a text" if kind is str else "a mapping of options"
            raise UserError(f"key {key!r}: not {wanted}: {override[key]!r}", where=where)


def _override_rule(
    override: Mapping[str, Any], index: int, rule: str, options: Mapping[str, Any]
) -> tuple[Rule, str]:
    where = f"overrides[{index}]"
    name = override.get("rule") or rule
    own = dict(override.get("options") or {})
    inherited = dict(options) if name == rule else {}
    return make_rule(name, {**inherited, **own}, where=where), where


class _Matcher:
    """Matches sites by name (a glob, or a regular expression after `re:`) or by type and attributes."""

    def __init__(self, override: Mapping[str, Any], index: int) -> None:
        where = f"overrides[{index}]"
        self.pattern: str | None = override.get("match")
        self.kind: str | None = override.get("type")
        self._attributes = {k: v for k, v in override.items() if k not in _RESERVED}
        if (self.pattern is None) == (self.kind is None):
            raise UserError("give either 'match' or 'type'", where=where)
        if self.pattern is not None and self._attributes:
            key = next(iter(self._attributes))
            raise UserError(f"unknown key {key!r}", where=where, given=key, choices=_RESERVED)
        if not override.get("rule") and not override.get("options"):
            raise UserError("gives neither 'rule' nor 'options'", where=where)
        self._expression = self._compile(where)

    def _compile(self, where: str) -> re.Pattern[str]:
        pattern = self.pattern or ""
        try:
            expression = pattern[3:] if pattern.startswith("re:") else fnmatch.translate(pattern)
            return re.compile(expression)
        except re.error as error:
            raise UserError(f"{pattern!r} is not a regular expression: {error}", where=where) from None

    def __call__(self, model: nn.Module, site: Site) -> bool:
        if self.pattern is not None:
            return self._expression.fullmatch(site.name) is not None
        if site.kind != self.kind:
            return False
        layer = model.get_submodule(site.owner)
        return all(_same(getattr(layer, name, None), value) for name, value in self._attributes.items())

    def refuse_unknown_attributes(self, model: nn.Module, sites: Sequence[Site], where: str) -> None:
        """Raise UserError for an attribute that no layer of the type has."""
        layers = [model.get_submodule(site.owner) for site in sites if site.kind == self.kind]
        known = {name for layer in layers for name in vars(layer) if not name.startswith("_")}
        for name in self._attributes if layers else ():
            if name not in known:
                raise UserError(f"unknown key {name!r}", where=where, given=name, choices=known)

    def __str__(self) -> str:
        if self.pattern is not None:
            return repr(self.pattern)
        attributes = "".join(f", {name}={value}" for name, value in self._attributes.items())
        return f"type {self.kind}{attributes}"


def _same(actual: Any, wanted: Any) -> bool:
    """Compare a layer's attribute with a recipe's value; a number stands for itself in each dimension."""
    if isinstance(actual, tuple) and not isinstance(wanted, list | tuple):
        return all(entry == wanted for entry in actual)
    if isinstance(actual, tuple):
        return actual == tuple(wanted)
    return bool(actual == wanted)
