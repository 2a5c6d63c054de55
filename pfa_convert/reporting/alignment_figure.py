"""The figure of alignment: path angle and norm ratio of every layer by epoch, a column for each variant."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pfa_convert.reporting.accuracy_figure import titles_of
from pfa_convert.reporting.figures import pyplot_without_display
from pfa_convert.reporting.results import Variant
from pfa_convert.reporting.style import (
    ANGLES,
    MOST_NAMED,
    RIGHT_ANGLE,
    SPREAD,
    angle_axis,
    band_handle,
    layer_colours,
    name_some,
)

ANGLE, RATIO = "angle_deg", "norm_ratio"
PUBLISHED = {ANGLE: "final_alignment_deg_by_layer", RATIO: "final_norm_ratio_by_layer"}
LABELS = {ANGLE: "path angle (degrees)", RATIO: "norm ratio |F| / |W|"}

Curves = dict[str, list[tuple[float, float]]]
"""For each site, mean and standard deviation over the seeds by epoch."""


def deep(variants: Mapping[str, Variant]) -> bool:
    """Return whether there are more layers than curves could tell apart."""
    return any(len(_layers(variant)) > MOST_NAMED for variant in variants.values())


def alignment_figure(variants: Mapping[str, Variant]) -> Any:
    """Draw curves for few layers, and heat maps by layer and epoch for many."""
    return _heat_maps(variants) if deep(variants) else _curves(variants)


def _by_epoch(variant: Variant, key: str) -> tuple[int, Curves]:
    """Return the first epoch that all runs have, and the curves from there on."""
    first = max(run.first_aligned for run in variant.runs)
    by_run = [
        {site: values[first - run.first_aligned :] for site, values in run.by_site(key).items()}
        for run in variant.runs
    ]
    return first, {site: variant.epochs(run[site] for run in by_run) for site in by_run[0]}


def _grid(variants: Mapping[str, Variant], width: float, height: float) -> tuple[Any, Any]:
    """Return a figure with two rows of panels, titles in words above and epochs below."""
    figure, axes = pyplot_without_display().subplots(
        2,
        len(variants),
        figsize=(width * len(variants) + 1.4, height),
        sharex="col",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, title in enumerate(titles_of(variants).values()):
        axes[0][column].set_title(textwrap.fill(title, round(10 * width)), fontsize=10)
        axes[1][column].set_xlabel("epoch")
        axes[1][column].xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def _curves(variants: Mapping[str, Variant]) -> Any:
    figure, axes = _grid(variants, 2.2, 5.2)
    angles: list[float] = []
    sites = _sites(variants)
    colours = dict(zip(sites, layer_colours(len(sites)), strict=True))
    for column, variant in enumerate(variants.values()):
        for row, key in enumerate((ANGLE, RATIO)):
            first, curves = _by_epoch(variant, key)
            _draw_layers(axes[row][column], variant, key, first, curves, colours)
            angles += [mean for curve in curves.values() for mean, _ in curve if key == ANGLE]
    angle_axis(axes[0][0], angles)
    axes[0][0].set_ylabel(LABELS[ANGLE])
    axes[1][0].set_ylabel(LABELS[RATIO])
    _legend(figure, variants, colours)
    return figure


def _sites(variants: Mapping[str, Variant]) -> list[str]:
    """Return the layers of all variants, in the order of the deepest one's."""
    by_variant = [_layers(variant) for variant in variants.values()]
    return list(dict.fromkeys(site for sites in sorted(by_variant, key=len, reverse=True) for site in sites))


def _layers(variant: Variant) -> list[str]:
    return list(variant.runs[0].by_site(ANGLE))


def _draw_layers(
    panel: Any, variant: Variant, key: str, first: int, curves: Curves, colours: Mapping[str, Any]
) -> None:
    published = variant.paper.get(PUBLISHED[key], [])
    for index, (site, curve) in enumerate(curves.items()):
        colour = colours[site]
        epochs = range(first, first + len(curve))
        # A right angle is at the axis' very end, and a trifle above it no reason for a longer one.
        panel.plot(epochs, [mean for mean, _ in curve], color=colour, linewidth=1.2, clip_on=False)
        if len(variant.runs) > 1:
            low, high = ([mean + sign * std for mean, std in curve] for sign in (-1, 1))
            panel.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        if index < len(published):
            end = variant.recipe.train.epochs
            panel.plot([end], [published[index]], "x", color=colour, markersize=6, clip_on=False)
    if key == RATIO:
        panel.axhline(1, color="0.7", linewidth=0.7, zorder=0)


def _legend(figure: Any, variants: Mapping[str, Variant], colours: Mapping[str, Any]) -> None:
    """Name the layers, and what crosses and bands stand for where there are any."""
    from matplotlib.lines import Line2D

    handles: list[Any] = [Line2D([], [], color=colour) for colour in colours.values()]
    names = [f"layer {site}" for site in colours]
    alike = all(_layers(variant) == list(colours) for variant in variants.values())
    if len(names) > 1 and alike:
        names[0], names[-1] = f"{names[0]} (input)", f"{names[-1]} (output)"
    if any(PUBLISHED[ANGLE] in variant.paper for variant in variants.values()):
        handles.append(Line2D([], [], color="gray", marker="x", linestyle="none"))
        names.append("the paper's seed 0, at the end")
    if any(len(variant.runs) > 1 for variant in variants.values()):
        handles.append(band_handle())
        names.append(SPREAD)
    columns = min(len(names), max(2, len(variants)))
    figure.legend(handles, names, frameon=False, fontsize=8, ncols=columns, loc="outside lower center")


def _heat_maps(variants: Mapping[str, Variant]) -> Any:
    sites = _sites(variants)
    figure, axes = _grid(variants, 1.9, 2 * min(4.5, 1.0 + 0.12 * len(sites)))
    ratios = [_means(variant, RATIO) for variant in variants.values()]
    away = max([1.0, *(abs(math.log2(v)) for _, rows in ratios for row in rows for v in row if v > 0)])
    for column, variant in enumerate(variants.values()):
        first, means = _means(variant, ANGLE)
        shown = _draw_map(axes[0][column], first, means, cmap=ANGLES, vmin=0, vmax=RIGHT_ANGLE)
        first, means = ratios[column]
        powers = [[math.log2(value) if value > 0 else -away for value in row] for row in means]
        compared = _draw_map(axes[1][column], first, powers, cmap="PuOr_r", vmin=-away, vmax=away)
    for row in (0, 1):
        axes[row][0].set_yticks(*name_some(sites, 32), fontsize=7)
        axes[row][0].set_ylabel("layer, input at the top")
    bar = figure.colorbar(shown, ax=list(axes[0]), label=LABELS[ANGLE], extend="max", pad=0.01)
    bar.set_ticks(range(0, 91, 30))
    bar = figure.colorbar(compared, ax=list(axes[1]), label=LABELS[RATIO], pad=0.01)
    whole = range(-math.floor(away), math.floor(away) + 1)
    bar.set_ticks(list(whole), labels=[f"{2.0**power:g}" for power in whole])
    return figure


def _means(variant: Variant, key: str) -> tuple[int, list[list[float]]]:
    """Return the first epoch, and the means over the seeds: a row for each layer, a column for each epoch."""
    first, curves = _by_epoch(variant, key)
    return first, [[mean for mean, _ in curve] for curve in curves.values()]


def _draw_map(panel: Any, first: int, rows: Sequence[Sequence[float]], **scale: Any) -> Any:
    last = first + len(rows[0]) - 1
    extent = (first - 0.5, last + 0.5, len(rows) - 0.5, -0.5)
    return panel.imshow(rows, aspect="auto", interpolation="nearest", extent=extent, **scale)
