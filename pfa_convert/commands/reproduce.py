"""`pfa-convert reproduce`: a whole table of the paper; `pfa-convert report`: tables and figures of runs."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Generator, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import track

from pfa_convert.commands.completion import complete_table
from pfa_convert.errors import UserError
from pfa_convert.reporting.console import console

if TYPE_CHECKING:
    from pfa_convert.training.reproduction import FinishedRun

NO_FIGURES = "figures need matplotlib, which pip install '.[plots]' adds in a checkout"


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
@click.option(
    "--ray", "ray_address", metavar="ADDRESS", help="Run on a Ray cluster: auto, local, ray://HOST:10001."
)
@click.option(
    "--gpus-per-run", type=click.FloatRange(min=0), help="With --ray: the share of a GPU for each run."
)
@click.option(
    "--list", "listing", is_flag=True, help="Print one train command a line, for a job array; run none."
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
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
    ray_address: str | None,
    gpus_per_run: float | None,
    listing: bool,
    as_json: bool,
) -> None:
    """Run a TABLE, every rule with every seed, and report it beside the paper's.

    TABLE is mnist, sparse, cifar10 or imagenet, or any recipe file with variants. What is finished is
    skipped, what was begun is continued, and a run that fails stops no other. The report is in
    OUTPUT/report-TABLE.

    \b
    pfa-convert reproduce mnist --data data --jobs 2
    pfa-convert reproduce cifar10 --data data --rules bp,pfa,pfa-o --seeds 0-2
    pfa-convert reproduce cifar10 --data data --ray auto --gpus-per-run 0.14
    pfa-convert reproduce cifar10 --data data --list > runs.txt
    """
    from pfa_convert.devices import usable_device
    from pfa_convert.training.reproduction import arguments, plan, reproduce

    wanted = dict(_axis(text) for text in only) | ({"rule": rules.split(",")} if rules else {})
    notes: dict[str, None] = {}
    runs = plan(table, output, wanted, None if seeds is None else _numbers(seeds), settings, notes.setdefault)
    for note in notes:  # each once, though it is of many recipes
        click.echo(note, err=True)
    if listing:
        for run in runs:
            click.echo(shlex.join(["pfa-convert", *arguments(run, data, settings, device)]))
        return
    if gpus_per_run is not None and ray_address is None:
        raise UserError("is for runs on a Ray cluster: give --ray too", where="--gpus-per-run")
    talk = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False) if as_json else console
    _warn_without_figures(talk)
    if ray_address is not None:
        from pfa_convert.training.ray_runs import reproduce_on_ray

        ended = reproduce_on_ray(runs, ray_address, gpus_per_run, data, settings, device)
        talk.print(f"{len(runs)} runs on the Ray cluster {ray_address}, in {output}", markup=False)
    else:
        usable_device(device)
        if data is not None and not data.is_dir():
            raise UserError(f"there is no folder {str(data)!r}", where="--data")
        jobs = jobs or _cores_or_gpus()
        ended = reproduce(runs, jobs, data, settings, device)
        talk.print(f"{len(runs)} runs, {jobs} at a time, in {output}", markup=False)
    failures = _follow(ended, len(runs), talk, table)
    folders = [run.folder for run in runs if run.trained]
    if folders:
        _report(folders, output / f"report-{Path(table).stem}", as_json)
    if failures:
        talk.print(
            f"[bold]{len(failures)} of {len(runs)} runs failed[/bold]; the same command tries them again"
        )
        for end in failures:
            talk.print(f"  {end.run.label}: {end.failure}", markup=False)
        raise click.exceptions.Exit(1)


@click.command("report")
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("report"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON.")
def report_command(folders: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Compare the runs below FOLDERS with the paper: tables, figures, and one page in OUTPUT.

    \b
    pfa-convert report runs --output report
    """
    if output.is_file():
        raise UserError(f"{output} is a file; name a folder", where="--output")
    _report(folders, output, as_json)


def _follow(
    ended: Generator[FinishedRun, None, None], total: int, talk: Console, table: str
) -> list[FinishedRun]:
    """Show the runs as they end; return those that failed. Ctrl-C and SIGTERM let the others save."""
    signal.signal(signal.SIGTERM, _interrupt)
    failures = []
    try:
        for end in track(ended, total=total, console=talk, description=table):
            talk.print(f"{end.run.label}: {end.failure or 'finished'}", markup=False)
            if end.failure:
                failures.append(end)
    except KeyboardInterrupt:
        ended.close()
        click.echo("pfa-convert: stopped, with all saved; the same command continues", err=True)
        raise click.exceptions.Exit(130) from None
    return failures


def _report(folders: Iterable[Path], output: Path, as_json: bool) -> None:
    from pfa_convert.reporting.page import write_report
    from pfa_convert.reporting.reading import read_runs
    from pfa_convert.reporting.result_tables import print_results
    from pfa_convert.reporting.rows import rows
    from pfa_convert.training.environment import command_line

    experiments = read_runs(folders)
    written = write_report(experiments, output, command_line())
    if as_json:
        tables = {name: [row.to_dict() for row in rows(variants)] for name, variants in experiments.items()}
        click.echo(json.dumps(tables, indent=1))
        return
    print_results(console, experiments)
    if any(path.suffix == ".png" for path in written):
        console.print(f"tables, figures and index.html are in {output}", markup=False)
    else:
        console.print(f"tables and index.html are in {output}; {NO_FIGURES}", markup=False)


def _warn_without_figures(talk: Console) -> None:
    if find_spec("matplotlib") is None:
        talk.print(f"the report will have tables alone: {NO_FIGURES}", markup=False)


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
