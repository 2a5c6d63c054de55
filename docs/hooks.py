"""Pages that mkdocs makes of the code itself: the rules, and the help of each command."""

from __future__ import annotations

import inspect
from typing import Any

import click
from mkdocs.structure.files import File, Files

from pfa_convert.cli import cli
from pfa_convert.reporting.tables import bounds
from pfa_convert.rules import RULES


def on_files(files: Files, config: Any) -> Files:
    """Add `rules.md` and `commands.md`."""
    files.append(File.generated(config, "rules.md", content="\n".join(_rules())))
    files.append(File.generated(config, "commands.md", content="\n".join(_commands())))
    return files


def _rules() -> list[str]:
    lines = ["# The rules", ""]
    for name in RULES:
        rule = RULES[name]
        lines += [f"## {name}", "", f"**{rule.title}**: `{rule.formula}`", "", inspect.getdoc(rule) or "", ""]
        lines += [f"Source: {rule.source}", "", f"Cost over backpropagation: {rule.cost}", ""]
        lines += [f"Strategies: {', '.join(rule.strategies)}", ""]
        lines += ["| option | default | range | meaning |", "|---|---|---|---|"]
        for option, field in rule.model_fields.items():
            default = "" if field.default is None else field.default
            lines.append(f"| `{option}` | {default} | {bounds(field.metadata)} | {field.description} |")
        lines.append("")
    return lines


def _commands() -> list[str]:
    lines = ["# Command line", ""]
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=f"pfa-convert {name}")
        lines += [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    return lines
