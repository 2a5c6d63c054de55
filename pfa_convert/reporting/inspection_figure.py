"""The figure of an inspection: angles, norm ratio, what is left of the start, and the spectrum of B B^T."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfa_convert.inspection import SiteInspection
from pfa_convert.reporting.figures import pyplot_without_display, write


def inspection_figure(found: Mapping[str, SiteInspection], title: str, path: Path) -> None:
    """Draw one point for each site in each panel; what no site has gets no panel.

    Raises:
        UserError: if matplotlib is missing or the file cannot be written.
    """
    values: dict[str, list[float]] = {
        "path angle (degrees)": [site.angle_deg for site in found.values()],
        "gradient angle to BP (degrees)": [site.gradient_angle_deg for site in found.values()],
        "norm ratio |F| / |W|": [site.norm_ratio for site in found.values()],
        "share of the start left in F": [site.share_of_start for site in found.values()],
        "correlation of F with W": [site.correlation for site in found.values()],
        "reciprocal connections (share)": [site.reciprocal for site in found.values()],
        "closest forward neuron (|correlation|)": [site.closest for site in found.values()],
    }
    panels = {label: column for label, column in values.items() if not all(map(math.isnan, column))}
    spectra = {name: site.eigenvalues for name, site in found.items() if site.eigenvalues}
    count = len(panels) + bool(spectra)
    pyplot = pyplot_without_display()
    columns = min(count, 4)
    size = (math.ceil(count / columns), columns)
    figure, grid = pyplot.subplots(
        *size, figsize=(3.6 * size[1], 3.6 * size[0]), layout="constrained", squeeze=False
    )
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.remove()
    for panel, (label, column) in zip(axes, panels.items(), strict=False):
        panel.plot(range(len(column)), column, marker="o", linestyle="none", clip_on=False)
        panel.set_title(label, fontsize=9)
        finite = [value for value in column if not math.isnan(value)]
        panel.set(xlabel="site", ylim=(min(0, 1.1 * min(finite)), 1.1 * max(finite) or 1))
        _name_sites(panel, list(found))
    if spectra:
        _draw_spectra(axes[count - 1], spectra)
    figure.suptitle(title)
    write(figure, path)


def _name_sites(panel: Any, names: list[str]) -> None:
    every = max(1, len(names) // 12)
    panel.set_xticks(range(0, len(names), every), names[::every], rotation=90, fontsize=7)


def _draw_spectra(panel: Any, spectra: Mapping[str, tuple[float, ...]]) -> None:
    """Draw each site's eigenvalues in order, from the smallest to the largest."""
    for name, eigenvalues in spectra.items():
        places = [(index + 0.5) / len(eigenvalues) for index in range(len(eigenvalues))]
        panel.plot(places, eigenvalues, label=name, marker="." if len(eigenvalues) < 20 else None)
    panel.axhline(1, color="gray", linewidth=0.8)
    panel.set_title("eigenvalues of $B B^T$", fontsize=9)
    panel.set(xlabel="rank, from the smallest to the largest")
    panel.set_ylim(bottom=0)
    if len(spectra) <= 8:
        panel.legend(frameon=False, fontsize=7)
