"""Figures; matplotlib comes with the extra `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfa_convert.errors import UserError
from pfa_convert.training.bench import Measurement


def growth_figure(tables: Mapping[int, Sequence[Measurement]], axis: str, title: str, path: Path) -> None:
    """Draw how each variant's time and memory over backpropagation's grow with batch size or width.

    Args:
        tables: the measurements for each value on the x axis.
        axis: what the x axis shows.
        title: the model and how it was run.
        path: the picture, its format by its suffix.

    Raises:
        UserError: if matplotlib is missing or the file cannot be written.
    """
    pyplot = pyplot_without_display()
    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(10, 4), sharex=True, layout="constrained")
    sizes = list(tables)
    for index, first in enumerate(tables[sizes[0]]):
        if index == 0:
            continue
        rows = [tables[size][index] for size in sizes]
        (line,) = time.plot(sizes, [row.ratio for row in rows], marker="o", label=first.variant)
        low, high = [row.ratio_low for row in rows], [row.ratio_high for row in rows]
        time.fill_between(sizes, low, high, alpha=0.15, color=line.get_color())
        memory.plot(sizes, [row.memory_ratio for row in rows], marker="o", color=line.get_color())
    for axes, what in ((time, "step time"), (memory, "peak memory")):
        axes.axhline(1, color="gray", linewidth=0.8)
        axes.set(xlabel=axis, ylabel=f"{what} over backpropagation's", xscale="log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    time.legend(frameon=False)
    figure.suptitle(title)
    write(figure, path)


def write(figure: Any, path: Path) -> None:
    """Write a figure and close it; raises UserError if the file cannot be written."""
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be written: {error}", where=str(path)) from None
    pyplot_without_display().close(figure)


def pyplot_without_display() -> Any:
    """Return matplotlib's pyplot, which draws into files; raises UserError if matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "a figure needs matplotlib: pip install matplotlib, or '.[plots]' from a checkout"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
