"""Figures; matplotlib comes with the extra `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfa_convert.bench import Measurement
from pfa_convert.errors import UserError
from pfa_convert.reporting.style import colour_of


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
    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(10, 4.4), sharex=True, layout="constrained")
    sizes = list(tables)
    variants = [row.variant for row in tables[sizes[0]]][1:]
    for index, variant in enumerate(variants):
        rows = [tables[size][index + 1] for size in sizes]
        # Beside one another, that the bars of variants which cost the same can be told apart.
        places = [at + 0.08 * (index - (len(variants) - 1) / 2) for at in range(len(sizes))]
        quartiles = [
            [max(0.0, row.ratio - row.ratio_low) for row in rows],
            [max(0.0, row.ratio_high - row.ratio) for row in rows],
        ]
        look = _look(variant)
        time.errorbar(places, [row.ratio for row in rows], quartiles, label=variant, capsize=2, **look)
        memory.plot(places, [row.memory_ratio for row in rows], **look)
    for axes, what in ((time, "step time"), (memory, "peak memory")):
        axes.axhline(1, color="gray", linewidth=0.8)
        axes.set(xlabel=axis, ylabel=f"{what} over backpropagation's")
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    handles, names = time.get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, ncols=min(3, len(names)), loc="outside lower center")
    figure.suptitle(f"{title} (bars: quartiles)")
    write(figure, path)


def _look(variant: str) -> dict[str, Any]:
    """Return how a variant is drawn: colour by its rule, dashes and marker by its strategy."""
    rule, _, strategy = variant.partition(" ")
    ways = {"": ("-", "o"), "collapsed": ("-", "o"), "collapsed without K": (":", "v"), "fused": ("--", "s")}
    dashes, marker = ways.get(strategy, ("-.", "^"))
    return {"color": colour_of(rule), "linestyle": dashes, "marker": marker, "markersize": 5}


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
