"""The tables of what runs have shown, as they are printed and as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from pfa_convert.reporting.results import Variant
from pfa_convert.reporting.rows import Row, rows
from pfa_convert.reporting.style import signed

BEST = "best %"
HEADINGS = (
    "recipe",
    "seeds",
    "top-1 %",
    BEST,
    "gap to bp",
    "paper %",
    "its gap",
    "minus paper",
    "within noise",
)
PAPERS = "the paper's, seed 0"
ANGLES = ("recipe", "final path angles (degrees), by layer", PAPERS, "norm ratios", PAPERS)


def accuracy_table(variants: Mapping[str, Variant], *, best: bool = True) -> list[Sequence[str]]:
    """Return the headings and then a row for each variant with a finished run, as text.

    `best` says whether the accuracy of the best epoch is among the columns.
    """
    table = [HEADINGS, *(_cells(row) for row in rows(variants))]
    if not best:
        table = [
            [cell for cell, heading in zip(row, HEADINGS, strict=True) if heading != BEST] for row in table
        ]
    return _without_empty_columns(table)


def _cells(row: Row) -> Sequence[str]:
    return (
        row.recipe,
        str(row.seeds),
        _with_spread(row.mean, row.std if row.seeds > 1 else None),
        _with_spread(row.best_mean, row.best_std if row.seeds > 1 else None),
        _signed(row.gap) + ("" if row.gap_error is None else f" ± {row.gap_error:.2f}"),
        "" if row.paper_mean is None else _with_spread(row.paper_mean, row.paper_std),
        _signed(row.paper_gap),
        _signed(row.difference),
        {True: "yes", False: "no", None: ""}[row.within_noise],
    )


def angle_table(variants: Mapping[str, Variant]) -> list[Sequence[str]]:
    """Return the headings and then a row for each variant that has a path angle, as they are printed."""
    table: list[Sequence[str]] = [ANGLES]
    for variant in variants.values():
        angles, ratios = variant.at_end("angle_deg"), variant.at_end("norm_ratio")
        if any(mean for mean, _ in angles.values()):
            published = [
                variant.paper.get(f"final_{key}_by_layer", []) for key in ("alignment_deg", "norm_ratio")
            ]
            table.append(
                (
                    variant.title,
                    " ".join(f"{mean:.1f}" for mean, _ in angles.values()),
                    " ".join(f"{value:.1f}" for value in published[0]),
                    " ".join(f"{mean:.2f}" for mean, _ in ratios.values()),
                    " ".join(f"{value:.2f}" for value in published[1]),
                )
            )
    return _without_empty_columns(table)


def _without_empty_columns(table: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Leave out what no row has: most experiments are not in the paper, some have no `bp`."""
    headings, *body = table
    kept = [column for column in range(len(headings)) if any(row[column] for row in body)]
    return [[row[column] for column in kept] for row in table]


def _with_spread(value: float, spread: float | None) -> str:
    return f"{value:.2f}" if spread is None else f"{value:.2f} ± {spread:.2f}"


def _signed(value: float | None) -> str:
    return "" if value is None else signed(value)


def print_results(console: Console, experiments: Mapping[str, Mapping[str, Variant]]) -> None:
    """Print the table of each experiment, beside the paper's numbers, and which runs are not finished."""
    for variants in experiments.values():
        headings, *body = accuracy_table(variants, best=False)
        if body:
            table = Table(box=None, header_style="bold", pad_edge=False)
            table.add_column(headings[0], no_wrap=True)
            for heading in headings[1:]:
                table.add_column(heading, justify="right")
            for row in body:
                table.add_row(*row)
            console.print(table)
        for variant in variants.values():
            for note in notes(variant):
                console.print(note, markup=False)


def notes(variant: Variant) -> Iterator[str]:
    """Yield what a reader of the table must know of a recipe's runs: missing, short, there twice."""
    for run in variant.runs:
        if not run.finished:
            done = f"{len(run.records)} of {run.recipe.train.epochs} epochs"
            yield f"not finished: {variant.title}, seed {run.seed}: {done}"
    epochs, full = variant.recipe.train.epochs, variant.full_length
    if full and epochs != full:
        yield f"not compared with the paper: {variant.title} has {epochs} of its {full} epochs"
    if variant.repeated:
        yield f"{variant.title}: {variant.repeated} more of seeds that count already"
