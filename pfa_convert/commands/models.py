"""`pfa-convert models`: list the zoo, or convert all of it."""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.progress import track

from pfa_convert.errors import UserError
from pfa_convert.models import available
from pfa_convert.reporting.console import console, print_coverage
from pfa_convert.zoo import check_all


@click.command("models")
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
