"""What the shell offers at TAB: models, rules, recipes, keys of a recipe, sites of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import click

from pfa_convert.errors import UserError
from pfa_convert.models import available
from pfa_convert.recipe_files import TABLES, packaged_files, packaged_recipes
from pfa_convert.rule_facts import rule_facts

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _among(names: Callable[[], Iterable[str]]) -> Complete:
    return lambda _context, _parameter, begun: [name for name in names() if name.startswith(begun)]


def model_names() -> list[str]:
    """Return every model, with its source and without."""
    return [name for full in available() for name in (full, full.rpartition("/")[2])]


def _keys() -> list[str]:
    from pydantic import BaseModel

    from pfa_convert.recipe import Recipe

    def below(schema: type[BaseModel], above: str) -> Iterator[str]:
        for name, field in schema.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from below(kind, f"{above}{name}.")
            else:
                yield f"{above}{name}="

    return list(below(Recipe, ""))


def complete_site(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Return `SITE=` for the sites of the command's model, or `SITE=RULE` once the site is there."""
    site, equals, _ = begun.partition("=")
    if equals:
        return [offer for rule in rule_facts() if (offer := f"{site}={rule}").startswith(begun)]
    # An option that still lacks its value keeps click from taking what was typed before for the argument.
    model = context.params.get("model") or next(iter(context.args), None)
    if model is None:
        return []
    with suppress(UserError):
        from pfa_convert.alignment import report_of
        from pfa_convert.convert import convert
        from pfa_convert.models import build

        converted = convert(build(model).to("meta"), "fa")
        return [f"{s.name}=" for s in report_of(converted).sites if s.name.startswith(begun)]
    return []


complete_model = _among(model_names)
complete_rule = _among(rule_facts)
complete_recipe = _among(packaged_recipes)
complete_listed_recipe = _among(lambda: [*packaged_files(), *packaged_recipes()])
complete_table = _among(lambda: [*TABLES, *packaged_files()])
complete_key = _among(_keys)
