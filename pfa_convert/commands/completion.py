"""What the shell offers at TAB: models, rules and recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from pfa_convert.models import available
from pfa_convert.recipe_files import TABLES, packaged_files, packaged_recipes
from pfa_convert.rule_facts import rule_facts

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _among(names: Callable[[], Iterable[str]]) -> Complete:
    return lambda _context, _parameter, begun: [name for name in names() if name.startswith(begun)]


def _models() -> list[str]:
    return [name for full in available() for name in (full, full.rpartition("/")[2])]


complete_model = _among(_models)
complete_rule = _among(rule_facts)
complete_recipe = _among(packaged_recipes)
complete_table = _among(lambda: [*TABLES, *packaged_files()])
