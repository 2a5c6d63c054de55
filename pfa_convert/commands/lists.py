"""`pfa-convert rules` and `recipes`: what there is; quick, since nothing is imported for it."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from pfa_convert.commands.completion import complete_listed_recipe, complete_rule
from pfa_convert.errors import UserError
from pfa_convert.recipe_files import find_recipe, packaged_files, read_file, schema_file
from pfa_convert.reporting.console import console
from pfa_convert.reporting.lists import print_recipes, print_rule, print_rules
from pfa_convert.rule_facts import facts_of, rule_facts


@click.command("rules")
@click.argument("name", required=False, shell_complete=complete_rule)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rules_command(name: str | None, as_json: bool) -> None:
    """List the rules, or explain the rule NAME, which may be package.module:Class."""
    if name is not None and ":" in name:
        from pfa_convert.rules import RULES

        known = {name: facts_of(RULES[name])}
    else:
        known = rule_facts()
    if name is not None and name not in known:
        raise UserError(f"unknown rule {name!r}", given=name, choices=known)
    if as_json:
        facts = {key: asdict(rule) for key, rule in known.items()}
        click.echo(json.dumps(facts if name is None else facts[name], indent=1))
    elif name is None:
        print_rules(console, known.values())
    else:
        print_rule(console, known[name])


@click.command("recipes")
@click.argument("name", required=False, shell_complete=complete_listed_recipe)
@click.option("--schema", is_flag=True, help="Print the JSON schema of recipes, for editors.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recipes_command(name: str | None, schema: bool, as_json: bool) -> None:
    """List the packaged recipes, or show the recipe NAME: a file, or FILE-VARIANT such as mnist-mlp-pfa.

    \b
    pfa-convert recipes mnist-mlp > mine.yaml
    pfa-convert recipes mnist-mlp-pfa --json
    """
    if schema:
        click.echo(schema_file().read_text(encoding="utf-8"), nl=False)
    elif name is not None:
        _show(name, as_json)
    elif as_json:
        files = {key: read_file(path) for key, path in packaged_files().items()}
        listed = {key: {"file": str(file.path), "variants": file.axes()} for key, file in files.items()}
        click.echo(json.dumps(listed, indent=1))
    else:
        print_recipes(console, {key: read_file(path) for key, path in packaged_files().items()})


def _show(name: str, as_json: bool) -> None:
    file, choice = find_recipe(name)
    if as_json:
        click.echo(json.dumps(file.content(choice), indent=1))
    elif choice:
        import yaml

        click.echo(yaml.safe_dump(file.content(choice), sort_keys=False), nl=False)
    else:
        click.echo(file.path.read_text(encoding="utf-8"), nl=False)
