"""`pfa-convert rules` and `recipes`: what there is; quick, since nothing is imported for it."""

from __future__ import annotations

import click

from pfa_convert.commands.completion import complete_rule
from pfa_convert.errors import UserError
from pfa_convert.recipe_files import packaged_files, read_file
from pfa_convert.reporting.console import console
from pfa_convert.reporting.lists import print_recipes, print_rule, print_rules
from pfa_convert.rule_facts import rule_facts


@click.command("rules")
@click.argument("name", required=False, shell_complete=complete_rule)
def rules_command(name: str | None) -> None:
    """List the rules, or explain the rule NAME."""
    known = rule_facts()
    if name is None:
        print_rules(console, known.values())
    elif name in known:
        print_rule(console, known[name])
    else:
        raise UserError(f"unknown rule {name!r}", given=name, choices=known)


@click.command("recipes")
def recipes_command() -> None:
    """List the packaged recipes: FILE-VARIANT, such as mnist-mlp-pfa."""
    print_recipes(console, {name: read_file(path) for name, path in packaged_files().items()})
