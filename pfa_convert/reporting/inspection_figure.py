"""The figure of an inspection: angles, norm ratio, what is left of the start, and the spectrum of B B^T."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfa_convert.inspection import SiteInspection
from pfa_convert.reporting.figures import pyplot_without_display, write
from pfa_convert.reporting.style import (
    MOST_NAMED,
    angle_axis,
    colour_of,
    layer_colours,
    marker_of,
    name_some,
)

WIDEST = 12.0
"""Inches that a figure is wide at most; what does not fit beside comes below."""


def inspection_figure(found: Mapping[str, SiteInspection], title: str, path: Path) -> None:
    """Draw one point for each site in each panel, in its rule's colour; what no site has gets no panel.

    Panels are as wide as their sites need.

    Raises:
        UserError: if matplotlib is missing or the file cannot be written.
    """
    panels = {label: column for label, column in _columns(found).items() if not all(map(math.isnan, column))}
    spectra = {name: site.eigenvalues for name, site in found.items() if site.eigenvalues}
    count = len(panels) + bool(spectra)
    width = min(WIDEST, max(2.6, 1.1 + 0.18 * len(found)))
    rows = math.ceil(count / max(1, int(WIDEST / width)))
    size = (rows, math.ceil(count / rows))
    pyplot = pyplot_without_display()
    figure, grid = pyplot.subplots(
        *size, figsize=(width * size[1], 2.7 * size[0] + 0.4), layout="constrained", squeeze=False
    )
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.remove()
    for panel, (label, column) in zip(axes, panels.items(), strict=False):
        _draw_sites(panel, label, column, found)
    if spectra:
        _draw_spectra(axes[count - 1], spectra)
    figure.suptitle(title)
    _name_rules(figure, [site.rule for site in found.values()])
    write(figure, path)


def _columns(found: Mapping[str, SiteInspection]) -> dict[str, list[float]]:
    sites = found.values()
    return {
        "path angle (degrees)": [site.angle_deg for site in sites],
        "gradient angle (degrees)": [site.gradient_angle_deg for site in sites],
        "norm ratio |F| / |W|": [site.norm_ratio for site in sites],
        "share of the start left in F": [site.share_of_start for site in sites],
        "correlation of F with W": [site.correlation for site in sites],
        "share of reciprocal connections": [site.reciprocal for site in sites],
        "correlation, closest neuron": [site.closest for site in sites],
    }


def _draw_sites(panel: Any, label: str, column: Sequence[float], found: Mapping[str, SiteInspection]) -> None:
    for place, (value, site) in enumerate(zip(column, found.values(), strict=True)):
        look = {"color": colour_of(site.rule), "marker": marker_of(site.rule)}
        panel.plot([place], [value], linestyle="none", clip_on=False, **look)
    panel.set_title(label, fontsize=9)
    panel.set(xlabel="layer", xlim=(-0.5, len(column) - 0.5))
    if "degrees" in label:
        angle_axis(panel, column)
    else:
        # From 0 to 1 as angles from 0 to 90, that pictures of two rules can be laid side by side.
        finite = [value for value in column if not math.isnan(value)]
        panel.set_ylim(min(0, 1.1 * min(finite)), max(1.05, 1.1 * max(finite)))
    narrow = all(len(name) <= 3 for name in found)
    panel.set_xticks(*name_some(list(found), 60), rotation=0 if narrow else 90, fontsize=8 if narrow else 7)
    panel.grid(axis="y", color="0.92")


def _name_rules(figure: Any, rules: Sequence[str]) -> None:
    """Name the rules where there are several."""
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(rules))
    if len(names) > 1:
        handles = [
            Line2D([], [], color=colour_of(name), marker=marker_of(name), linestyle="none") for name in names
        ]
        figure.legend(handles, names, frameon=False, ncols=len(names), loc="outside lower center")


def _draw_spectra(panel: Any, spectra: Mapping[str, tuple[float, ...]]) -> None:
    """Draw each site's eigenvalues in order, from the smallest to the largest."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = layer_colours(len(spectra))
    for index, (name, eigenvalues) in enumerate(spectra.items()):
        places = [(rank + 0.5) / len(eigenvalues) for rank in range(len(eigenvalues))]
        look = {"color": colours[index], "linestyle": ("-", "--", "-.", ":")[index % 4], "linewidth": 1.3}
        panel.plot(places, eigenvalues, label=f"layer {name}", **look)
    panel.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    panel.set_title("eigenvalues of $B B^T$", fontsize=9)
    panel.set(xlabel="rank, smallest first")
    panel.set_ylim(bottom=0)
    if len(spectra) <= MOST_NAMED:
        panel.legend(frameon=False, fontsize=7)
        return
    shades = ScalarMappable(Normalize(0, len(spectra) / 0.9), "viridis")
    bar = panel.figure.colorbar(shades, ax=panel, label="layer, from input to output")
    bar.set_ticks([])
    bar.ax.set_ylim(0, len(spectra))
