"""Tables in the terminal of what there is: rules and recipes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pfa_convert.recipe_files import RecipeFile
from pfa_convert.rule_facts import RuleFacts


def print_rules(console: Console, rules: Iterable[RuleFacts]) -> None:
    """Print a line for each rule."""
    table = Table("rule", "feedback weight", "source", box=None, header_style="bold", pad_edge=False)
    for rule in rules:
        table.add_row(rule.name, rule.formula, rule.source)
    console.print(table)


def print_rule(console: Console, rule: RuleFacts) -> None:
    """Explain a rule: formula, source, cost, strategies, and each option with default and range."""
    console.print(f"[bold]{rule.name}[/bold]: {rule.title}\n", highlight=False)
    facts = Table.grid(padding=(0, 2))
    for key in ("formula", "source", "cost"):
        facts.add_row(key, escape(getattr(rule, key)))
    facts.add_row("strategies", ", ".join(rule.strategies))
    console.print(facts)
    console.print(f"\n{rule.explanation}\n", markup=False)
    table = Table("option", "default", "range", "meaning", box=None, header_style="bold", pad_edge=False)
    for name, option in rule.options.items():
        default = "" if option.default is None else str(option.default)
        values = ", ".join(rule.strategies) if name == "strategy" else option.bounds
        table.add_row(name, default, values, option.meaning)
    console.print(table)


def print_recipes(console: Console, files: Mapping[str, RecipeFile]) -> None:
    """Print a line for each recipe file: its model, its data set and the variants it has."""
    table = Table("recipe", "model", "data", "variants", box=None, header_style="bold", pad_edge=False)
    for name, file in files.items():
        first = file.content(next(iter(file.choices())))
        variants = "  x  ".join(" ".join(names) for names in file.axes().values())
        table.add_row(name, first["model"]["name"], first["data"]["dataset"], variants)
    console.print(table)
