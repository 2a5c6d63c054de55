"""Pages that mkdocs makes of the code itself; formulas as MathML, which browsers typeset by themselves."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import click
from latex2mathml.converter import convert as to_mathml
from mkdocs.structure.files import File, Files

from pfa_convert.cli import cli
from pfa_convert.recipe_files import schema_file
from pfa_convert.rule_facts import RuleFacts, rule_facts

RULES = rule_facts()

PICTURES = {
    path.stem.removeprefix("digits-mlp-"): path.name
    for path in (Path(__file__).parent / "inspect").glob("digits-mlp-*.png")
}
"""For each rule, the plot of its angles after training."""


FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
"""A formula as the extension arithmatex leaves it: inline in a span, displayed in a div."""


def on_config(config: Any) -> Any:
    """List the rules' pages below the entry `Rules`."""
    pages: list[Any] = ["rules/index.md", *({name: f"rules/{name}.md"} for name in RULES)]
    for section in config.nav:
        ((_, entries),) = section.items()
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            if "Rules" in entry:
                entries[index] = {"Rules": pages}
    return config


def on_page_content(content: str, **_: Any) -> str:
    """Typeset the formulas; there is no script to wait for, and nothing to fetch."""

    def typeset(found: re.Match[str]) -> str:
        kind, formula = found.group(1), html.unescape(found.group(2)).strip()
        # As fences, or a browser spaces the bars of |F| as it spaces signs of relations.
        formula = formula.replace(r"\lvert", r"\left|").replace(r"\rvert", r"\right|")
        display = "block" if kind == "div" else "inline"
        return f'<{kind} class="arithmatex">{to_mathml(formula, display=display)}</{kind}>'

    return FORMULA.sub(typeset, content)


def on_files(files: Files, config: Any) -> Files:
    """Add the rules' pages and `commands.md`."""
    pages = {"rules/index.md": _all_rules(), "commands.md": _commands(), "recipes.md": _recipes()}
    pages |= {f"rules/{name}.md": _rule(rule) for name, rule in RULES.items()}
    for path, lines in pages.items():
        files.append(File.generated(config, path, content="\n".join(lines)))
    return files


def _all_rules() -> list[str]:
    rows = [f"| [{name}]({name}.md) | {rule.title} | `{rule.formula}` |" for name, rule in RULES.items()]
    return ["# The rules", "", "| rule | name | feedback weight |", "|---|---|---|", *rows]


def _rule(rule: RuleFacts) -> list[str]:
    lines = [f"# The rule {rule.name}", "", f"**{rule.title}**: `{rule.formula}`", "", rule.explanation, ""]
    lines += [f"Source: {rule.source}", "", f"Cost over backpropagation: {rule.cost}", ""]
    lines += [f"Strategies: {', '.join(rule.strategies)}", ""]
    lines += ["| option | default | range | meaning |", "|---|---|---|---|"]
    for name, option in rule.options.items():
        default = "" if option.default is None else option.default
        lines.append(f"| `{name}` | {default} | {option.bounds} | {option.meaning} |")
    if rule.name in PICTURES:
        lines += [
            "",
            "## After training on the digits",
            "",
            f"![Angles, norm ratio and symmetry by layer](../inspect/{PICTURES[rule.name]})",
            "",
        ]
        lines += ["How it was measured, and the other rules: [alignment](../inspect/README.md)."]
    return lines


def _recipes() -> list[str]:
    """A table for each section of a recipe, from the schema that editors read."""
    schema = json.loads(schema_file().read_text(encoding="utf-8"))
    lines = [
        "# Recipes",
        "",
        "A recipe is one experiment as a YAML file. `pfa-convert recipes` lists the packaged ones,",
        "`pfa-convert recipes NAME` shows one. With `# yaml-language-server: $schema=FILE` at its top,",
        "and FILE from `pfa-convert recipes --schema`, editors complete and check it.",
        "",
    ]
    for title, section in {"recipe": schema, **schema["$defs"]}.items():
        name = "The file" if title == "recipe" else f"`{title.removesuffix('Section').lower()}`"
        explained = "" if title == "recipe" else section.get("description", "")
        lines += [
            f"## {name}",
            "",
            explained,
            "",
            "| key | values | default | meaning |",
            "|---|---|---|---|",
        ]
        for key, field in section["properties"].items():
            default = json.dumps(field["default"]) if field.get("default") is not None else ""
            meaning = field.get("description", "")
            lines.append(f"| `{key}` | {_values(field)} | {_short(default)} | {meaning} |")
        lines.append("")
    return lines


def _values(field: dict[str, Any]) -> str:
    """What a key of the schema can hold, in words."""
    if "$ref" in field:
        return f"`{field['$ref'].rpartition('/')[2].removesuffix('Section').lower()}`"
    if "anyOf" in field:
        return ", ".join(filter(None, map(_values, field["anyOf"])))
    if "enum" in field:
        return " ".join(f"`{value}`" for value in field["enum"])
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]}" for key, sign in bounds.items() if key in field]
    return " ".join([str(field.get("type", "")).replace("null", ""), *limits]).strip()


def _short(text: str) -> str:
    return f"`{text}`" if 0 < len(text) <= 30 else ""


def _commands() -> list[str]:
    lines = ["# Command line", ""]
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=f"pfa-convert {name}")
        lines += [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    return lines
