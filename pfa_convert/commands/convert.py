"""`pfa-convert MODEL`: convert, check the forward, report."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import click
import torch

from pfa_convert.commands.completion import complete_model, complete_recipe, complete_rule
from pfa_convert.convert import convert, revert
from pfa_convert.errors import UserError
from pfa_convert.files import read_header
from pfa_convert.models import build, example, resolve
from pfa_convert.recipe import load_recipe
from pfa_convert.reporting.console import console, print_conversion
from pfa_convert.saving import load, save
from pfa_convert.verify import forward_difference


@click.command("convert")
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--rule",
    help="The rule of every site that no override names; pfa by default.",
    shell_complete=complete_rule,
)
@click.option("--expansion", type=float, help="Middle neurons per output neuron, for the rule pfa.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Another option of the rule.")
@click.option("--override", "overrides", multiple=True, metavar="PATTERN=RULE", help="A rule for some sites.")
@click.option(
    "--recipe",
    help="Take the conversion from a recipe; options here override it.",
    shell_complete=complete_recipe,
)
@click.option("--num-classes", type=click.IntRange(min=1), help="Outputs of the classifier.")
@click.option("--seed", type=int, default=0, show_default=True, help="What feedback weights are drawn from.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the converted model to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def convert_command(
    model: str,
    rule: str | None,
    expansion: float | None,
    options: tuple[str, ...],
    overrides: tuple[str, ...],
    recipe: str | None,
    num_classes: int | None,
    seed: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Convert MODEL, check that its forward is unchanged, and report every site.

    MODEL is a name of torchvision or timm (`resnet50`, `timm/resnet50`), `paper/resnet20`, `paper/mlp`,
    `package.module:factory`, or a file that `--output` wrote.

    \b
    pfa-convert resnet50 --rule pfa --expansion 4
    pfa-convert timm/vit_tiny_patch16_224 --rule fa --override 'head=bp' --output vit.safetensors
    """
    if output is not None and not output.resolve().parent.is_dir():
        raise UserError(f"the folder {output.parent} does not exist", where="--output")
    if model.endswith(".safetensors"):
        plain, converted, summary = _from_file(Path(model))
        name = summary["model"]
    else:
        section = load_recipe(recipe).convert if recipe else None
        chosen = dict(section.options) if section and rule in (None, section.rule) else {}
        chosen |= _pairs(options, "--option")
        if expansion is not None:
            chosen["expansion"] = expansion
        listed = [
            {"match": key, "rule": str(value)} for key, value in _pairs(overrides, "--override").items()
        ]
        listed += section.overrides if section else []
        resolved = resolve(model)
        name = str(resolved) if resolved.source != "factory" else model
        plain = build(model, num_classes)
        started = time.perf_counter()
        default_rule = section.rule if section else "pfa"
        converted = convert(plain, rule or default_rule, options=chosen, overrides=listed, seed=seed)
        summary = {"model": str(resolved), "conversion_seconds": round(time.perf_counter() - started, 3)}

    summary["parameters"] = sum(parameter.numel() for parameter in plain.parameters())
    summary |= _forward_check(plain, converted, example(name))
    if output is not None:
        save(converted, output, name, num_classes=num_classes)
    if as_json:
        click.echo(json.dumps({**summary, **converted.conversion.to_dict()}, indent=1))
    else:
        print_conversion(console, summary, converted.conversion)
        if output is not None:
            console.print(f"written to {output}")
    if summary["forward_max_difference"]:
        raise click.exceptions.Exit(1)


def _from_file(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Return the plain and the converted model of a file that `--output` wrote."""
    started = time.perf_counter()
    converted, name = load(path), read_header(path)["model"]["name"]
    seconds = round(time.perf_counter() - started, 3)
    return revert(converted), converted, {"model": name, "conversion_seconds": seconds}


def _forward_check(plain: Any, converted: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
    try:
        with torch.no_grad():
            copy.deepcopy(plain).eval()(*inputs)
    except Exception as error:
        reason = f"the plain model does not take a batch of images: {' '.join(str(error).split())[:120]}"
        return {"forward_max_difference": None, "forward_check": reason}
    return {"forward_max_difference": forward_difference(plain, converted, *inputs)}


def _pairs(texts: tuple[str, ...], option: str) -> dict[str, Any]:
    """Return `{key: value}` of texts `key=value`; values that are numbers or booleans become such."""
    pairs = {}
    for text in texts:
        key, equals, value = text.rpartition("=")
        if not equals or not key:
            raise UserError(f"{text!r} is not of the form KEY=VALUE", where=option)
        try:
            pairs[key] = json.loads(value)
        except json.JSONDecodeError:
            pairs[key] = value
    return pairs
