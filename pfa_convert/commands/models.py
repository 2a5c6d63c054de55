"""`pfa-convert models`: list the zoo, convert all of it, or prove that its conversion is right."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.progress import track

from pfa_convert.commands.outputs import refuse_unwritable
from pfa_convert.errors import UserError
from pfa_convert.models import available
from pfa_convert.reporting.console import console, print_sweep


@click.command("models")
@click.argument("pattern", required=False)
@click.option("--check", "what", flag_value="check", help="Convert each without memory for its weights.")
@click.option("--prove", "what", flag_value="prove", help="Convert each with random weights; prove it right.")
@click.option("--output", type=click.Path(path_type=Path), help="The table; coverage.csv or proof.csv.")
@click.option("--largest", type=float, default=30, show_default=True, help="To prove: million parameters.")
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count(), help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models_command(
    pattern: str | None, what: str | None, output: Path | None, largest: float, jobs: int, as_json: bool
) -> None:
    """List the models, those that match PATTERN (a glob or a part of the name).

    `--check` and `--prove` write one line of a table for each model as it is done; a table that is
    there already is continued. A model of your own, `package.module:factory`, is printed instead; if the
    module has a function `example_inputs`, it returns the arguments of a call, else images are given.

    \b
    pfa-convert models 'vit_*'
    pfa-convert models --check --output coverage.csv
    pfa-convert models --prove mypackage.models:small
    """
    if pattern and ":" in pattern and what is not None:
        return _one_of_the_users(pattern, what)
    names = available(pattern)
    if not names:
        raise UserError(f"no model matches {pattern!r}", given=pattern, choices=available())
    refuse_unwritable(output, "--output", "coverage.csv")
    if what is None:
        click.echo(json.dumps(names, indent=1) if as_json else "\n".join(names))
        return

    from pfa_convert.zoo.coverage import Coverage, check
    from pfa_convert.zoo.proof import Proof, prove
    from pfa_convert.zoo.sweep import sweep

    lines: Iterator[Any]
    if what == "check":
        output = output or Path("coverage.csv")
        lines = sweep(names, check, Coverage, output, jobs)
    else:
        output = output or Path("proof.csv")
        lines = sweep(names, partial(prove, largest=largest * 1e6), Proof, output, jobs)
    tracked = track(lines, total=len(names), console=console, description="models")
    done = [line for line in tracked if line is not None]
    print_sweep(console, done)
    console.print(f"written to {output}", markup=False)
    if any(line.status == "failed" for line in done):
        raise click.exceptions.Exit(1)


def _one_of_the_users(name: str, what: str) -> None:
    """Print what became of one model, and every claim that was checked; exit code 1 if one does not hold."""
    from dataclasses import asdict

    from pfa_convert.models import build, resolve
    from pfa_convert.zoo.coverage import check
    from pfa_convert.zoo.proof import prove

    build(str(resolve(name).name))  # a mistake in the name is the user's, and no line of a table
    line: Any = check(name) if what == "check" else prove(name)
    for key, value in asdict(line).items():
        console.print(f"{key:<16} {value}", markup=False, highlight=False)
    if line.status not in ("balanced", "proved"):
        raise click.exceptions.Exit(1)
