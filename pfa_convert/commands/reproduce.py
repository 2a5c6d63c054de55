"""`pfa-convert reproduce`: a whole table of the paper; `pfa-convert report`: tables and figures of runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import track

from pfa_convert.commands.completion import complete_table
from pfa_convert.errors import UserError
from pfa_convert.reporting.console import console

if TYPE_CHECKING:
    from pfa_convert.training.reproduction import Ended


@click.command("reproduce")
@click.argument("table", metavar="TABLE", shell_complete=complete_table)
@click.option("--rules", help="Some of the rules: bp,pfa.")
@click.option("--only", multiple=True, metavar="AXIS=NAMES", help="Some variants: density=1,0.3.")
@click.option("--seeds", help="0-4 or 0,2,5; the recipe's own by default.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Processes at a time; one per GPU or core by default."
)
@click.option("--data", type=click.Path(path_type=Path), help="The folder with the data.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change every run: train.epochs=5."
)
@click.option("--device", help="Where to train; the GPUs in turn by default.")
def reproduce_command(
    table: str,
    rules: str | None,
    only: tuple[str, ...],
    seeds: str | None,
    jobs: int | None,
    data: Path | None,
    output: Path,
    settings: tuple[str, ...],
    device: str | None,
) -> None:
    """Run a TABLE, every rule with every seed, and report it beside the paper's.

    TABLE is mnist, sparse, cifar10 or imagenet, or any recipe file with variants. What is finished is
    skipped, what was begun is continued, and a run that fails stops no other. The report is in
    OUTPUT/report-TABLE.

    \b
    pfa-convert reproduce mnist --data data --jobs 2
    pfa-convert reproduce cifar10 --data data --rules bp,pfa,pfa-o --seeds 0-2
    """
    from pfa_convert.training.reproduction import plan, reproduce

    wanted = dict(_axis(text) for text in only) | ({"rule": rules.split(",")} if rules else {})
    runs = plan(table, output, wanted, None if seeds is None else _numbers(seeds), settings)
    jobs = jobs or _cores_or_gpus()
    console.print(f"{len(runs)} runs, {jobs} at a time, in {output}")
    signal.signal(signal.SIGTERM, _interrupt)
    failures = []
    ended = reproduce(runs, jobs, data, settings, device)
    try:
        for end in track(ended, total=len(runs), console=console, description=table):
            _tell(end)
            if end.failure:
                failures.append(end)
    except KeyboardInterrupt:
        ended.close()
        click.echo("pfa-convert: stopped, with all saved; the same command continues", err=True)
        raise click.exceptions.Exit(130) from None
    folders = [run.folder for run in runs if (run.folder / "log.jsonl").exists()]
    if folders:
        _report(folders, output / f"report-{Path(table).stem}")
    if failures:
        console.print(
            f"[bold]{len(failures)} of {len(runs)} runs failed[/bold]; the same command tries them again"
        )
        for end in failures:
            console.print(f"  {end.run.label}: {end.failure}", markup=False)
        raise click.exceptions.Exit(1)


@click.command("report")
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("report"), show_default=True)
def report_command(folders: tuple[Path, ...], output: Path) -> None:
    """Compare the runs below FOLDERS with the paper: tables, figures, and one page in OUTPUT.

    \b
    pfa-convert report runs --output report
    """
    _report(folders, output)


def _report(folders: Any, output: Path) -> None:
    from pfa_convert.reporting.page import write_report
    from pfa_convert.reporting.result_tables import print_results
    from pfa_convert.reporting.results import read_runs

    experiments = read_runs(folders)
    print_results(console, experiments)
    write_report(experiments, output)
    console.print(f"tables, figures and index.html are in {output}")


def _tell(end: Ended) -> None:
    console.print(f"{end.run.label}: {end.failure or 'finished'}", markup=False)


def _interrupt(_signal: int, _frame: Any) -> None:
    """Treat SIGTERM as Ctrl-C: the runs are asked to save."""
    raise KeyboardInterrupt


def _cores_or_gpus() -> int:
    import torch

    return torch.cuda.device_count() or os.cpu_count() or 1


def _axis(text: str) -> tuple[str, list[str]]:
    axis, equals, names = text.partition("=")
    if not equals or not axis or not names:
        raise UserError(f"{text!r} is not of the form AXIS=NAME,NAME", where="--only")
    return axis, names.split(",")


def _numbers(text: str) -> list[int]:
    """Return the seeds that a text such as `0-4` or `0,2,5` stands for."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UserError(f"{part!r} is neither a number nor a range such as 0-4", where="--seeds")
        if dash and int(last) - int(first) >= 10_000:
            raise UserError(f"{part!r} is too many seeds", where="--seeds")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))
