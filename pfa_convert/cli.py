"""The command line: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click

from pfa_convert.commands.bench import bench_command
from pfa_convert.commands.completion import complete_recipe, complete_rule
from pfa_convert.commands.convert import convert_command
from pfa_convert.commands.inspect import inspect_command
from pfa_convert.commands.models import models_command
from pfa_convert.commands.reproduce import report_command, reproduce_command
from pfa_convert.errors import UserError, misfortune
from pfa_convert.recipe import load_recipe
from pfa_convert.recipe_files import packaged_files, read_file
from pfa_convert.reporting.console import ProgressWatcher, console, print_result
from pfa_convert.reporting.tables import print_recipes, print_rule, print_rules
from pfa_convert.rules import RULES
from pfa_convert.training import train


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


cli.add_command(convert_command)
cli.add_command(bench_command)
cli.add_command(models_command)
cli.add_command(inspect_command)
cli.add_command(reproduce_command)
cli.add_command(report_command)


@cli.command("train")
@click.argument("recipe", shell_complete=complete_recipe)
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
    """Train by RECIPE: a file, or the name of a packaged one (see `pfa-convert recipes`).

    Under torchrun, every process trains on its part of each batch.

    \b
    pfa-convert train digits-mlp-pfa
    pfa-convert train mnist-mlp-pfa --data data --set train.epochs=5 --output runs/mine
    torchrun --nproc-per-node 4 -m pfa_convert train imagenet-resnet18-pfa --data data
    """
    loaded = load_recipe(recipe, settings)
    watcher = ProgressWatcher(console)
    try:
        result = train(
            loaded, data_root=data, output=output, seed=seed, resume=resume, device=device, watcher=watcher
        )
    finally:
        watcher.stop()
    print_result(console, loaded, result)


@cli.command("rules")
@click.argument("name", required=False, shell_complete=complete_rule)
def rules_command(name: str | None) -> None:
    """List the rules, or explain the rule NAME."""
    if name is None:
        print_rules(console, [RULES[known] for known in RULES])
    else:
        print_rule(console, RULES[name])


@cli.command("recipes")
def recipes_command() -> None:
    """List the packaged recipes: FILE-VARIANT, such as mnist-mlp-pfa."""
    print_recipes(console, {name: read_file(path) for name, path in packaged_files().items()})


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
    except OSError as error:  # a disk that is full or gone
        click.echo(f"pfa-convert: {error.filename or 'a file'}: {error.strerror or error}", err=True)
        code = 2
    except (MemoryError, RuntimeError) as error:
        if (happened := misfortune(error)) is None:
            raise
        click.echo(f"pfa-convert: {happened}", err=True)
        code = 2
    raise SystemExit(code if isinstance(code, int) else 0)
