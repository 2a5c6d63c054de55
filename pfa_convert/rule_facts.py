"""What each rule says of itself, read from its source: to import a rule is to import PyTorch."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfa_convert.rules import Rule

SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
"""The bounds of an option as mathematicians write them, by pydantic's names."""


@dataclass(frozen=True)
class Option:
    """An option of a rule; `bounds` is text such as `> 0, <= 1`."""

    default: Any
    bounds: str
    meaning: str | None


@dataclass(frozen=True)
class RuleFacts:
    """A rule's name, sentences about it, strategies, and options by name."""

    name: str
    title: str
    formula: str
    source: str
    cost: str
    strategies: tuple[str, ...]
    explanation: str
    options: dict[str, Option] = field(default_factory=dict)


def rule_facts() -> dict[str, RuleFacts]:
    """Return the facts of every rule by name; nothing is imported.

    Where a source says something that is not written out (a computed title), or another package has rules
    as well, all of them are imported.
    """
    try:
        if entry_points(group="pfa_convert.rules"):
            raise ValueError("rules of other packages are to be imported")
        found = _read_from(Path(__file__).parent / "rules")
    except (ValueError, KeyError, OSError):
        from pfa_convert.rules import RULES

        return {name: facts_of(RULES[name]) for name in RULES}
    return dict(sorted(found.items()))


def facts_of(rule: type[Rule]) -> RuleFacts:
    """Return the facts of a rule that is imported."""
    options = {
        name: Option(
            option.default,
            _bounds({key: getattr(m, key) for m in option.metadata for key in SIGNS if hasattr(m, key)}),
            option.description,
        )
        for name, option in rule.model_fields.items()
    }
    sentences = {key: getattr(rule, key) for key in ("name", "title", "formula", "source", "cost")}
    return RuleFacts(
        **sentences, strategies=rule.strategies, explanation=inspect.getdoc(rule) or "", options=options
    )


def _bounds(constraints: Mapping[str, Any]) -> str:
    return ", ".join(f"{sign} {constraints[key]}" for key, sign in SIGNS.items() if key in constraints)


def _read_from(folder: Path) -> dict[str, RuleFacts]:
    """Return the facts of the rules in a folder; raises ValueError or KeyError where they are not plain."""
    classes: dict[str, ast.ClassDef] = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes |= {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return {name: _read(name, node, classes) for node in classes.values() for name in _registered_names(node)}


def _registered_names(node: ast.ClassDef) -> Iterator[str]:
    """Yield `pfa` for a class below `@RULES.register("pfa")`."""
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "RULES.register":
            yield ast.literal_eval(call.args[0])


def _read(name: str, node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> RuleFacts:
    said: dict[str, Any] = {}
    options: dict[str, Option] = {}
    for ancestor in _line(node, classes):
        for statement in ancestor.body:
            if isinstance(statement, ast.AnnAssign) and statement.value is not None:
                key, value = ast.unparse(statement.target), statement.value
                if not ast.unparse(statement.annotation).startswith("ClassVar"):
                    options[key] = _option(value)
                    continue
            elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                key, value = ast.unparse(statement.targets[0]), statement.value
            else:
                continue
            if key in RuleFacts.__dataclass_fields__:
                said[key] = ast.literal_eval(value)
    sentences = {key: said[key] for key in ("title", "formula", "source", "cost", "strategies")}
    return RuleFacts(name=name, **sentences, explanation=ast.get_docstring(node) or "", options=options)


def _line(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    """Yield a class's ancestors among the given ones, the most general first, and then the class."""
    for base in node.bases:
        if ast.unparse(base) in classes:
            yield from _line(classes[ast.unparse(base)], classes)
    yield node


def _option(value: ast.expr) -> Option:
    """Return the option that `Field(10.0, gt=0, description="...")` or a plain default describes."""
    if not isinstance(value, ast.Call):
        return Option(ast.literal_eval(value), "", None)
    given = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in value.keywords}
    return Option(ast.literal_eval(value.args[0]), _bounds(given), given.get("description"))
