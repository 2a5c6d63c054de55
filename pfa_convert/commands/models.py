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
    there already is continued.

    \b
    pfa-convert models 'vit_*'
    pfa-convert models --check --output coverage.csv
    """
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
    console.print(f"written to {output}")
    if any(line.status == "failed" for line in done):
        raise click.exceptions.Exit(1)
