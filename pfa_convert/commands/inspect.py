"""`pfa-convert inspect`: how well the error of a trained model is aligned, site by site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pfa_convert.commands.outputs import refuse_unwritable
from pfa_convert.errors import UserError
from pfa_convert.reporting.console import console, print_inspection


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="The folder with the data of the run.")
@click.option("--plot", type=click.Path(path_type=Path), help="A picture: inspection.png or .svg.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(path: Path, data: Path | None, plot: Path | None, as_json: bool) -> None:
    """Inspect PATH: the folder of a run, or a file that `--output` of a conversion wrote.

    Path angle and norm ratio between F and W, what a plastic F has kept of its start, and the eigenvalues
    of B B^T. For a run, the angle between each weight's gradient and backpropagation's too, on the first
    batch that the run is evaluated on.

    \b
    pfa-convert inspect runs/mnist-mlp-pfa/seed-0 --data data --plot inspection.png
    """
    refuse_unwritable(plot, "--plot", "inspection.png")

    from pfa_convert.inspection import inspect
    from pfa_convert.reporting.inspection_figure import inspection_figure
    from pfa_convert.saving import load

    title, model, arguments = _run(path, data) if path.is_dir() else (path.name, load(path), ())
    found = inspect(model, *arguments)
    if plot is not None:
        inspection_figure(found, title, plot)
    if as_json:
        click.echo(json.dumps({name: site.to_dict() for name, site in found.items()}, indent=1))
    else:
        print_inspection(console, title, found)
        if plot is not None:
            console.print(f"written to {plot}", markup=False)


def _run(path: Path, data: Path | None) -> tuple[str, Any, tuple[Any, ...]]:
    """Return a run's title and model, and the loss and batch to take its gradients on."""
    import torch
    from torch.nn import functional

    from pfa_convert.training.checkpoint import load_model
    from pfa_convert.training.run_folder import RunFolder
    from pfa_convert.training.setup import first_batch, make_model

    folder = RunFolder(path)
    if not folder.recipe.exists() or not folder.last.exists():
        raise UserError("is not the folder of a run", where=str(folder.path))
    recipe = folder.read_recipe()
    model = make_model(recipe, folder.seed, torch.device("cpu"))
    load_model(folder.last, model)
    images, labels = first_batch(recipe, data)
    return f"{recipe.name}, seed {folder.seed}", model.eval(), (functional.cross_entropy, images, labels)
