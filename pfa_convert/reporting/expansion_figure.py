"""The figure of the draws by expansion: the path angle of `B B^T W`, and the eigenvalues of `B B^T`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pfa_convert.expansion import Draws, marchenko_pastur, marchenko_pastur_edges
from pfa_convert.reporting.figures import pyplot_without_display, write
from pfa_convert.reporting.style import EXPANSION_LABEL, angle_axis, colour_of, marker_of


def expansion_draws_figure(found: Sequence[Draws], title: str, path: Path) -> None:
    """Draw every draw's angle beside the expected one, and the eigenvalues beside Marchenko and Pastur's.

    Raises:
        UserError: if matplotlib is missing or the file cannot be written.
    """
    pyplot = pyplot_without_display()
    figure, (angles, spectra) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    expansions, colour = [draws.expansion for draws in found], colour_of("pfa")
    angles.plot([], [], ".", color=colour, alpha=0.5, label="one draw")
    for draws in found:
        angles.plot(
            [draws.expansion] * len(draws.angles_deg), draws.angles_deg, ".", color=colour, alpha=0.15
        )
    angles.plot(
        expansions,
        [fmean(draws.angles_deg) for draws in found],
        marker_of("pfa"),
        color=colour,
        label="mean of the draws",
    )
    line = torch.logspace(math.log10(min(expansions)), math.log10(max(expansions)), 200).tolist()
    expected = [math.degrees(math.atan(1 / math.sqrt(e))) for e in line]
    angles.plot(line, expected, "--", color="0.4", linewidth=0.9, label="atan(1/sqrt(expansion))")
    angles.set(xlabel=EXPANSION_LABEL, ylabel="path angle of $B B^T W$ to $W$ (degrees)")
    angles.set(xscale="log")
    angle_axis(angles, [angle for draws in found for angle in draws.angles_deg])
    angles.set_xticks(expansions, [f"{e:g}" for e in expansions])
    angles.minorticks_off()
    angles.legend(frameon=False)
    _draw_spectra(spectra, found)
    figure.suptitle(title)
    write(figure, path)


def _draw_spectra(panel: Any, found: Sequence[Draws]) -> None:
    """Draw each expansion's histogram in a row of its own, as high as its highest value."""
    drawn = theory = None
    for row, draws in enumerate(found):
        lowest, highest = marchenko_pastur_edges(draws.expansion)
        margin = 0.1 * (highest - lowest)
        bins = torch.linspace(max(0.0, lowest - margin), highest + margin, 61, dtype=torch.float64)
        values = torch.tensor(draws.eigenvalues, dtype=torch.float64)
        counts = torch.histc(values, 60, float(bins[0]), float(bins[-1]))
        heights = counts / len(values) / (bins[1] - bins[0])
        middles = (bins[1:] + bins[:-1]) / 2
        density = marchenko_pastur(middles, draws.expansion)
        scale = 0.85 / max(float(heights.max()), 1e-12)
        filled = {"baseline": row, "fill": True, "alpha": 0.45, "color": colour_of("pfa")}
        drawn = panel.stairs((heights * scale + row).tolist(), bins.tolist(), **filled)
        (theory,) = panel.plot(middles.tolist(), (density * scale + row).tolist(), "k--", linewidth=0.9)
    panel.set_yticks(range(len(found)), [f"{draws.expansion:g}" for draws in found])
    panel.set(xlabel="eigenvalue of $B B^T$", ylabel="expansion")
    panel.legend([drawn, theory], ["all draws", "Marchenko and Pastur"], frameon=False, loc="upper right")
