"""YAML as recipes use it: safe, bounded, without aliases or repeated keys; and laying one over another."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pfa_convert.errors import UserError

LARGEST_FILE = 1_000_000
"""Bytes; a longer file is no recipe."""


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file.

    Raises:
        UserError: if it cannot be read, is too large, not UTF-8, not valid YAML, or not a mapping.
    """
    where = str(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"is too large for a recipe: more than {LARGEST_FILE:,} bytes", where=where)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=where) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", where=where) from None
    content = parse(text, where)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError("is not a mapping of names to values", where=where)
    return content


def parse(text: str, where: str) -> Any:
    """Return the value that the text stands for; raises UserError with `where` if it is not valid."""
    try:
        return yaml.load(text, _Loader)
    except UserError as error:
        raise UserError(str(error), where=where) from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"is not valid YAML: {error or 'nested too deeply'}", where=where) from None


def with_settings(content: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Return the content with changes such as `train.epochs=5`, their values written as in YAML.

    Raises:
        UserError: for a setting that is not of this form, or that reaches into something not a section.
    """
    changed = copy.deepcopy(dict(content))
    for setting in settings:
        key, equals, text = setting.partition("=")
        *path, last = key.split(".")
        if not equals or not all([*path, last]):
            raise UserError(f"{setting!r} is not of the form key=value", where="--set")
        section = changed
        for name in path:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise UserError(f"{name!r} is not a section", where=f"--set {setting}")
        section[last] = parse(text, f"--set {key}")
    return changed


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `over` laid over `base`: sections key by key; lists and single values replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


class _Loader(yaml.SafeLoader):
    """The safe loader, which besides refuses aliases (they can grow without bound) and repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise UserError("aliases (*name) are not allowed in a recipe")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise UserError(f"the key {key.value!r} is given twice, line {key.start_mark.line + 1}")
            if isinstance(key.value, str):
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


# YAML 1.1 takes 1e-3 for a text, because it has no point.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)
