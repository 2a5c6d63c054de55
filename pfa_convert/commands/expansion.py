"""`pfa-convert expansion`: what path angle an expansion leads to, from random draws and from theory."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command("expansion")
@click.argument("expansions", nargs=-1, type=float)
@click.option("--outputs", default=128, show_default=True, help="Neurons above the feedback.")
@click.option("--inputs", default=128, show_default=True, help="Neurons below it.")
@click.option("--draws", default=100, show_default=True, help="Draws of B and W for each expansion.")
@click.option("--seed", default=0, show_default=True, help="Decides all draws.")
@click.option("--plot", type=click.Path(path_type=Path), help="A picture: expansion.png or .svg.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every angle and eigenvalue.")
def expansion_command(
    expansions: tuple[float, ...],
    outputs: int,
    inputs: int,
    draws: int,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Show the path angle of B B^T W to W for each of EXPANSIONS (eleven from 1 to 100), without training.

    That is where PFA ends once the start of R is forgotten. Beside it the theory for many neurons:
    atan(1/sqrt(expansion)), and the edges of Marchenko and Pastur's law for the eigenvalues of B B^T.

    \b
    pfa-convert expansion --plot expansion.png
    pfa-convert expansion 5 10 20 --outputs 10 --inputs 512
    """
    from pfa_convert.expansion import EXPANSIONS, draw_expansion
    from pfa_convert.reporting.console import console
    from pfa_convert.reporting.expansion_figure import expansion_draws_figure
    from pfa_convert.reporting.expansion_table import expansion_table

    found = [
        draw_expansion(expansion, outputs=outputs, inputs=inputs, draws=draws, seed=seed)
        for expansion in expansions or EXPANSIONS
    ]
    if plot is not None:
        expansion_draws_figure(found, f"{outputs} x {inputs}, {draws} draws each, untrained", plot)
    if as_json:
        click.echo(json.dumps([asdict(drawn) for drawn in found]))
        return
    console.print(expansion_table(found))
    if plot is not None:
        console.print(f"written to {plot}", markup=False)
