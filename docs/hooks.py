"""Pages that mkdocs makes of the code itself: one for each rule, and the help of each command."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files
from pfa_convert.reporting.tables import bounds

from pfa_convert.cli import cli
from pfa_convert.rules import RULES

PICTURES = {
    path.stem.split("-", 2)[2]: path.name
    for path in sorted((Path(__file__).parent / "inspect").glob("mnist-*.png"))
}
"""For each rule, the plot of its angles after training."""


def on_config(config: Any) -> Any:
    """List the rules' pages below the entry `Rules`."""
    pages: list[Any] = ["rules/index.md", *({name: f"rules/{name}.md"} for name in RULES)]
    config.nav = [{"Rules": pages} if "Rules" in entry else entry for entry in config.nav]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the rules' pages and `commands.md`."""
    pages = {"rules/index.md": _all_rules(), "commands.md": _commands()}
    pages |= {f"rules/{name}.md": _rule(name) for name in RULES}
    for path, lines in pages.items():
        files.append(File.generated(config, path, content="\n".join(lines)))
    return files


def _all_rules() -> list[str]:
    rows = [f"| [{name}]({name}.md) | {RULES[name].title} | `{RULES[name].formula}` |" for name in RULES]
    return ["# The rules", "", "| rule | name | feedback weight |", "|---|---|---|", *rows]


def _rule(name: str) -> list[str]:
    rule = RULES[name]
    lines = [f"# {name}", "", f"**{rule.title}**: `{rule.formula}`", "", inspect.getdoc(rule) or "", ""]
    lines += [f"Source: {rule.source}", "", f"Cost over backpropagation: {rule.cost}", ""]
    lines += [f"Strategies: {', '.join(rule.strategies)}", ""]
    lines += ["| option | default | range | meaning |", "|---|---|---|---|"]
    for option, field in rule.model_fields.items():
        default = "" if field.default is None else field.default
        lines.append(f"| `{option}` | {default} | {bounds(field.metadata)} | {field.description} |")
    if name in PICTURES:
        lines += ["", "## After training on MNIST", "", f"![by layer](../inspect/{PICTURES[name]})", ""]
        lines += ["How it was measured, and the other rules: [alignment](../inspect/README.md)."]
    return lines


def _commands() -> list[str]:
    lines = ["# Command line", ""]
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=f"pfa-convert {name}")
        lines += [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    return lines
