"""A report of runs as files: tables as Markdown and JSON, figures, and one page that holds it all."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pfa_convert.errors import UserError
from pfa_convert.reporting.figures import pyplot_without_display
from pfa_convert.reporting.result_figures import Picture, pictures
from pfa_convert.reporting.results import Row, Variant, rows

HEADINGS = (
    "recipe",
    "seeds",
    "top-1 %",
    "gap to bp",
    "paper %",
    "its gap",
    "minus paper",
    "within noise",
    "s/run",
)
PAPERS = "the paper's, seed 0"
ANGLES = ("recipe", "final path angles (degrees), by layer", PAPERS, "norm ratios", PAPERS)


def write_report(experiments: Mapping[str, Mapping[str, Variant]], folder: Path) -> list[Path]:
    """Write `report.md`, `results.json`, `index.html` and each figure as PNG and SVG; return their paths.

    Raises:
        UserError: if matplotlib is missing or the folder cannot be written.
    """
    written: list[Path] = []
    sections = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, variants in experiments.items():
            drawn = [(picture, _save(picture, folder, written)) for picture in pictures(name, variants)]
            tables = [table for table in (accuracy_table(variants), angle_table(variants)) if table[1:]]
            sections.append({"name": name, "tables": tables, "drawn": drawn})
        for template in ("report.md", "index.html"):
            text = _templates().get_template(f"{template}.j2").render(sections=sections)
            written.append(folder / template)
            written[-1].write_text(text, encoding="utf-8")
        written.append(folder / "results.json")
        results = {name: [row.to_dict() for row in rows(v)] for name, v in experiments.items()}
        written[-1].write_text(json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(folder)) from None
    return written


def accuracy_table(variants: Mapping[str, Variant]) -> list[Sequence[str]]:
    """Return the headings and then a row for each variant with a finished run, as they are printed."""
    return _without_empty_columns([HEADINGS, *(_cells(row) for row in rows(variants))])


def _cells(row: Row) -> Sequence[str]:
    return (
        row.recipe,
        str(row.seeds),
        f"{row.mean:.2f}" + (f" ± {row.std:.2f}" if row.seeds > 1 else ""),
        _signed(row.gap),
        ""
        if row.paper_mean is None
        else f"{row.paper_mean:.2f}" + (f" ± {row.paper_std:.2f}" if row.paper_std else ""),
        _signed(row.paper_gap),
        _signed(row.difference),
        {True: "yes", False: "no", None: ""}[row.within_noise],
        f"{row.seconds:.0f}",
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
                    variant.recipe.name,
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


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _save(picture: Picture, folder: Path, written: list[Path]) -> str:
    """Write a figure in both formats, close it, and return it as text for a page."""
    for suffix in ("png", "svg"):
        path = folder / f"{picture.name}.{suffix}"
        # Without date and random names, the same runs give the same file.
        metadata = {"Date": None} if suffix == "svg" else None
        with pyplot_without_display().rc_context({"svg.hashsalt": picture.name}):
            picture.figure.savefig(path, dpi=130, metadata=metadata)
        written.append(path)
    memory = io.BytesIO()
    picture.figure.savefig(memory, format="png", dpi=130)
    pyplot_without_display().close(picture.figure)
    return base64.b64encode(memory.getvalue()).decode()


def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("pfa_convert", "reporting/templates"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
