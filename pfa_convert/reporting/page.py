"""A report of runs as files: tables as Markdown and JSON, figures, and one page that holds it all."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pfa_convert.errors import UserError
from pfa_convert.reporting.figures import pyplot_without_display
from pfa_convert.reporting.provenance import provenance
from pfa_convert.reporting.result_figures import Picture, pictures
from pfa_convert.reporting.result_tables import accuracy_table, angle_table, notes
from pfa_convert.reporting.results import Variant
from pfa_convert.reporting.rows import rows


def write_report(
    experiments: Mapping[str, Mapping[str, Variant]], folder: Path, command: str = ""
) -> list[Path]:
    """Write `report.md`, `results.json`, `index.html` and each figure as PNG and SVG; return their paths.

    Without matplotlib there are no figures. `index.html` begins with where it comes from: `command`, which
    made it, with version and date, and the versions, devices and dates of the runs.

    Raises:
        UserError: if the folder cannot be written.
    """
    written: list[Path] = []
    sections = []
    origin = provenance(
        (run for v in experiments.values() for one in v.values() for run in one.runs), command
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, by_label in experiments.items():
            found = pictures(name, by_label) if find_spec("matplotlib") is not None else ()
            drawn = [(picture, _save(picture, folder, written)) for picture in found]
            tables = [table for table in (accuracy_table(by_label), angle_table(by_label)) if table[1:]]
            said = [note for variant in by_label.values() for note in notes(variant)]
            sections.append({"name": name, "tables": tables, "drawn": drawn, "notes": said})
        for template in ("report.md", "index.html"):
            text = _templates().get_template(f"{template}.j2").render(sections=sections, origin=origin)
            written.append(folder / template)
            written[-1].write_text(text, encoding="utf-8")
        written.append(folder / "results.json")
        results = {name: [row.to_dict() for row in rows(v)] for name, v in experiments.items()}
        written[-1].write_text(json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(folder)) from None
    return written


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
