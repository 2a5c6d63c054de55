"""`pfa-convert train`: one run of a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from pfa_convert.commands.completion import complete_recipe
from pfa_convert.reporting.console import console, print_result


@click.command("train")
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
    from pfa_convert.recipe import load_recipe

    loaded = load_recipe(recipe, settings)

    from pfa_convert.reporting.run_progress import ProgressWatcher
    from pfa_convert.training import train

    watcher = ProgressWatcher(console)
    try:
        result = train(
            loaded, data_root=data, output=output, seed=seed, resume=resume, device=device, watcher=watcher
        )
    finally:
        watcher.stop()
    print_result(console, loaded, result)
