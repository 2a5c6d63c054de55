"""The command line: parse, call, print."""

from __future__ import annotations

import copy
import inspect
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pfa_convert.convert import convert
from pfa_convert.errors import UserError
from pfa_convert.models import available, build, resolve
from pfa_convert.recipe import load_recipe, packaged_recipes
from pfa_convert.reporting.console import (
    ProgressWatcher,
    print_benchmark,
    print_conversion,
    print_coverage,
    print_result,
)
from pfa_convert.rules import RULES
from pfa_convert.saving import save
from pfa_convert.training import train
from pfa_convert.training.bench import Settings as BenchSettings
from pfa_convert.training.bench import bench_variants, measure
from pfa_convert.verify import forward_difference
from pfa_convert.zoo import check_all

console = Console(highlight=False, soft_wrap=True)


class ConvertByDefault(click.Group):
    """A group whose first argument may also be a model: `pfa-convert resnet50` is `convert resnet50`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the named subcommand, or `convert` for anything that is none."""
        if args and args[0] not in self.commands:
            args = ["convert", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let `pfa-convert --rule pfa resnet50` through as well."""
        if args and args[0].startswith("-") and args[0] not in ("--help", "--version"):
            args = ["convert", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ConvertByDefault, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pfa-convert")
def cli() -> None:
    """Send the error of any torchvision or timm model through feedback weights.

    \b
    pfa-convert resnet50 --rule pfa
    pfa-convert vit_tiny_patch16_224 --rule fa --override 'head=bp' --json
    pfa-convert train digits-mlp-pfa
    """


@cli.command("convert")
@click.argument("model")
@click.option("--rule", help="The rule of every site that no override names; pfa by default.")
@click.option("--expansion", type=float, help="Middle neurons per output neuron, for the rule pfa.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Another option of the rule.")
@click.option("--override", "overrides", multiple=True, metavar="PATTERN=RULE", help="A rule for some sites.")
@click.option("--recipe", help="Take the conversion from a recipe; options here override it.")
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
    or `package.module:factory`.
    """
    section = load_recipe(recipe).convert if recipe else None
    chosen = dict(section.options) if section and rule in (None, section.rule) else {}
    chosen |= _pairs(options, "--option")
    if expansion is not None:
        chosen["expansion"] = expansion
    listed = [{"match": key, "rule": str(value)} for key, value in _pairs(overrides, "--override").items()]
    listed += section.overrides if section else []
    resolved = resolve(model)
    if output is not None and not output.resolve().parent.is_dir():
        raise UserError(f"the folder {output.parent} does not exist", where="--output")

    plain = build(model, num_classes)
    started = time.perf_counter()
    converted = convert(
        plain, rule or (section.rule if section else "pfa"), options=chosen, overrides=listed, seed=seed
    )
    seconds = time.perf_counter() - started
    summary: dict[str, Any] = {
        "model": str(resolved),
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "conversion_seconds": round(seconds, 3),
        **_forward_check(plain, converted, resolved.input_size),
    }
    if output is not None:
        save(
            converted,
            output,
            str(resolved) if resolved.source != "factory" else model,
            num_classes=num_classes,
        )
    if as_json:
        click.echo(json.dumps({**summary, **converted.conversion.to_dict()}, indent=1))
    else:
        print_conversion(console, summary, converted.conversion)
        if output is not None:
            console.print(f"written to {output}")


def _forward_check(plain: Any, converted: Any, input_size: tuple[int, ...]) -> dict[str, Any]:
    inputs = torch.rand(2, *input_size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            copy.deepcopy(plain).eval()(inputs)
    except Exception as error:
        reason = f"the plain model does not take a batch of images: {' '.join(str(error).split())[:120]}"
        return {"forward_max_difference": None, "forward_check": reason}
    return {"forward_max_difference": forward_difference(plain, converted, inputs)}


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


@cli.command("train")
@click.argument("recipe")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the recipe: train.epochs=5."
)
@click.option("--data", type=click.Path(path_type=Path), help="The folder with the data.")
@click.option("--output", type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--seed", type=int, help="One seed; the recipe's first by default.")
@click.option("--device", help="Where to train, such as cpu or cuda:1.")
@click.option("--resume", is_flag=True, help="Continue from the last checkpoint.")
def train_command(
    recipe: str,
    settings: tuple[str, ...],
    data: Path | None,
    output: Path | None,
    seed: int | None,
    device: str | None,
    resume: bool,
) -> None:
    """Train by RECIPE: a file, or the name of a packaged one (see `pfa-convert recipes`)."""
    loaded = load_recipe(recipe, settings)
    watcher = ProgressWatcher(console)
    try:
        result = train(
            loaded, data_root=data, output=output, seed=seed, resume=resume, device=device, watcher=watcher
        )
    finally:
        watcher.stop()
    print_result(console, loaded, result)


@cli.command("bench")
@click.argument("model")
@click.option("--rules", default="pfa,pfa-o,kp", show_default=True, help="Rules to measure.")
@click.option("--strategies", default="collapsed,fused", show_default=True, help="Strategies of each rule.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--image-size", type=click.IntRange(min=1), help="Pixels; the model's own by default.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Compile every variant.")
@click.option("--channels-last", is_flag=True)
@click.option(
    "--steps", type=click.IntRange(min=2), default=10, show_default=True, help="Measured steps of each."
)
@click.option("--scale", is_flag=True, help="Measure at a quarter of, half of, and the whole batch size.")
@click.option("--json", "as_json", is_flag=True)
def bench_command(
    model: str,
    rules: str,
    strategies: str,
    batch_size: int,
    scale: bool,
    compiled: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Measure step time and memory of rules and strategies over backpropagation's on MODEL."""
    variants = bench_variants(rules.split(","), strategies.split(","))
    sizes = sorted({max(1, batch_size // 4), max(1, batch_size // 2), batch_size}) if scale else [batch_size]
    tables = {}
    for size in sizes:
        settings = BenchSettings(model=model, batch_size=size, compile=compiled, **rest)
        tables[size] = measure(settings, variants)
        if not as_json:
            print_benchmark(console, settings, tables[size])
    if as_json:
        click.echo(json.dumps({size: [asdict(m) for m in table] for size, table in tables.items()}, indent=1))


@cli.command("rules")
@click.argument("name", required=False)
def rules_command(name: str | None) -> None:
    """List the rules, or explain the rule NAME."""
    if name is None:
        table = Table("rule", "feedback weight", "source", box=None, header_style="bold", pad_edge=False)
        for rule_name in RULES:
            table.add_row(rule_name, RULES[rule_name].formula, RULES[rule_name].source)
        console.print(table)
        return
    rule = RULES[name]
    console.print(f"[bold]{name}[/bold]: {rule.title}\n  {rule.formula}\n  {rule.source}\n")
    console.print(inspect.getdoc(rule) or "", markup=False)
    console.print(f"strategies: {', '.join(rule.strategies)}\noptions:")
    for option, field in rule.model_fields.items():
        bounds = ", ".join(str(bound) for bound in field.metadata)
        console.print(f"  {option} = {field.default}  {field.description} {bounds}".rstrip(), markup=False)


@cli.command("recipes")
def recipes_command() -> None:
    """List the packaged recipes."""
    table = Table("recipe", "model", "rule", "published", box=None, header_style="bold", pad_edge=False)
    for name in packaged_recipes():
        recipe = load_recipe(name)
        published = f"{recipe.expect.mean} %" if recipe.expect else ""
        table.add_row(name, recipe.model.name, recipe.convert.rule, published)
    console.print(table)


@cli.command("models")
@click.argument("pattern", required=False)
@click.option("--check", is_flag=True, help="Convert each on the meta device and write what became of it.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("coverage.csv"), show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count(), help="Processes.")
def models_command(pattern: str | None, check: bool, output: Path, jobs: int) -> None:
    """List the models, those that match PATTERN (a glob or a part of the name)."""
    names = available(pattern)
    if not names:
        raise UserError(f"no model matches {pattern!r}", given=pattern, choices=available())
    if not check:
        click.echo("\n".join(names))
        return
    lines = list(
        track(check_all(names, output, jobs), total=len(names), console=console, description="models")
    )
    print_coverage(console, lines)
    console.print(f"written to {output}")


def main() -> NoReturn:
    """Run the command line: exit code 2 and one line for a mistake of the user's, 130 when interrupted."""
    try:
        code = cli.main(standalone_mode=False) or 0
    except UserError as error:
        click.echo(f"pfa-convert: {error}", err=True)
        code = 2
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        click.echo(f"pfa-convert: {error.format_message()}", err=True)
        code = 2
    except click.Abort:
        code = 130
    raise SystemExit(code if isinstance(code, int) else 0)
