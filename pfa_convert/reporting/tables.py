"""Tables in the terminal of what there is (rules, recipes) and of what runs have shown."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pfa_convert.recipe_files import RecipeFile
from pfa_convert.reporting.page import accuracy_table
from pfa_convert.reporting.results import Variant
from pfa_convert.rules import Rule


def print_rules(console: Console, rules: Iterable[type[Rule]]) -> None:
    """Print a line for each rule."""
    table = Table("rule", "feedback weight", "source", box=None, header_style="bold", pad_edge=False)
    for rule in rules:
        table.add_row(rule.name, rule.formula, rule.source)
    console.print(table)


def print_rule(console: Console, rule: type[Rule]) -> None:
    """Explain a rule: formula, source, cost, strategies, and each option with default and range."""
    console.print(f"[bold]{rule.name}[/bold]: {rule.title}\n", highlight=False)
    facts = Table.grid(padding=(0, 2))
    for key in ("formula", "source", "cost"):
        facts.add_row(key, escape(getattr(rule, key)))
    facts.add_row("strategies", ", ".join(rule.strategies))
    console.print(facts)
    console.print(f"\n{inspect.getdoc(rule)}\n", markup=False)
    table = Table("option", "default", "range", "meaning", box=None, header_style="bold", pad_edge=False)
    for option, field in rule.model_fields.items():
        default = "" if field.default is None else str(field.default)
        values = ", ".join(rule.strategies) if option == "strategy" else bounds(field.metadata)
        table.add_row(option, default, values, field.description)
    console.print(table)


def bounds(constraints: Sequence[Any]) -> str:
    """Return bounds as mathematicians write them: `> 0, <= 1`."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = {key: getattr(bound, key) for bound in constraints for key in signs if hasattr(bound, key)}
    return ", ".join(f"{signs[key]} {value}" for key, value in found.items())


def print_recipes(console: Console, files: Mapping[str, RecipeFile]) -> None:
    """Print a line for each recipe file: its model, its data set and the variants it has."""
    table = Table("recipe", "model", "data", "variants", box=None, header_style="bold", pad_edge=False)
    for name, file in files.items():
        first = file.content(next(iter(file.choices())))
        variants = "  x  ".join(" ".join(names) for names in file.axes().values())
        table.add_row(name, first["model"]["name"], first["data"]["dataset"], variants)
    console.print(table)


def print_results(console: Console, experiments: Mapping[str, Mapping[str, Variant]]) -> None:
    """Print the table of each experiment, beside the paper's numbers, and which runs are not finished."""
    for variants in experiments.values():
        headings, *body = accuracy_table(variants)
        if body:
            table = Table(box=None, header_style="bold", pad_edge=False)
            table.add_column(headings[0], no_wrap=True)
            for heading in headings[1:]:
                table.add_column(heading, justify="right")
            for row in body:
                table.add_row(*row)
            console.print(table)
        for variant in variants.values():
            for run in variant.runs:
                if not run.finished:
                    epochs = f"{len(run.records)} of {run.recipe.train.epochs} epochs"
                    console.print(f"not finished: {run.recipe.name}, seed {run.seed}: {epochs}")
