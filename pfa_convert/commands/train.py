"""`pfa-convert train`: one run of a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from pfa_convert.commands.completion import complete_key, complete_recipe
from pfa_convert.recipe_files import find_recipe
from pfa_convert.reporting.console import console, print_result

if TYPE_CHECKING:
    from pfa_convert.recipe import Recipe


@click.command("train")
@click.argument("recipe", shell_complete=complete_recipe)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_key,
    help="Change the recipe: train.epochs=5.",
)
@click.option("--data", type=click.Path(path_type=Path), help="The folder with the data.")
@click.option("--output", type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="One seed; the recipe's first by default.")
@click.option("--device", help="Where to train, such as cpu or cuda:1.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Of the CPU; by default as the work needs.")
@click.option("--resume", is_flag=True, help="Continue from the last checkpoint, or extend: train.epochs=60.")
@click.option("--overwrite", is_flag=True, help="Replace the run that is in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train_command(
    recipe: str,
    settings: tuple[str, ...],
    data: Path | None,
    output: Path | None,
    seed: int | None,
    device: str | None,
    threads: int | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train by RECIPE: a file, or the name of a packaged one (see `pfa-convert recipes`).

    Under torchrun, every process trains on its part of each batch.

    \b
    pfa-convert train digits-mlp-pfa
    pfa-convert train mnist-mlp-pfa --data data --set train.epochs=5 --output runs/mine
    torchrun --nproc-per-node 4 -m pfa_convert train imagenet-resnet18-pfa --data data
    """
    from pfa_convert.recipe import load_recipe

    main = os.environ.get("RANK", "0") == "0"
    talk = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False) if as_json else console
    talk = talk if main else Console(quiet=True)
    loaded = load_recipe(recipe, settings, lambda text: talk.print(text, markup=False))

    from pfa_convert.reporting.run_progress import ProgressWatcher
    from pfa_convert.training import train

    _tell_variants(talk, recipe, loaded)
    watcher = ProgressWatcher(talk)
    try:
        result = train(
            loaded,
            data_root=data,
            output=output,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            threads=threads,
            device=device,
            watcher=watcher,
        )
    finally:
        watcher.stop()
    if not as_json:
        print_result(talk, loaded, result)
    elif main:
        click.echo(result.to_json())


def _tell_variants(talk: Console, source: str, recipe: Recipe) -> None:
    """Say what is taken of a file with variants of which none was named, and which there are."""
    file, choice = find_recipe(source)
    if axes := {} if choice else file.axes():
        listed = "; ".join(f"{axis} {', '.join(names)}" for axis, names in axes.items())
        sign = ":" if Path(source).is_file() else "-"
        example = "-".join(names[-1] for names in axes.values())
        talk.print(
            f"{source} is taken as it begins: rule {recipe.convert.rule}. Its variants, such as "
            f"{source}{sign}{example}: {listed}",
            markup=False,
        )
