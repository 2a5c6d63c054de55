"""The figure of accuracies: by epoch on the left, at the end on the right, a row for each variant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pfa_convert.reporting.figures import pyplot_without_display
from pfa_convert.reporting.results import Variant, mean_and_std
from pfa_convert.reporting.style import (
    DASHES,
    SPREAD,
    band_handle,
    colour_of,
    in_words,
    marker_of,
    shades_of,
)

PAPER_LINE: dict[str, Any] = {"linestyle": "--", "linewidth": 0.9}
PAPER_MARK: dict[str, Any] = {"marker": "d", "markerfacecolor": "none", "linestyle": "none", "capsize": 2}


def accuracy_figure(variants: Mapping[str, Variant]) -> Any:
    """Draw accuracy by epoch and, of several variants, the last one of each with its spread."""
    panels = min(2, len(variants))
    height = max(4.6, 2.0 + 0.34 * len(variants))
    figure, (axes,) = pyplot_without_display().subplots(
        1, panels, figsize=(5.6 * panels, height), layout="constrained", squeeze=False
    )
    titles, looks = titles_of(variants), looks_of(variants)
    for label, variant in variants.items():
        _draw_curve(axes[0], variant, looks[label])
    axes[0].set(xlabel="epoch", ylabel="top-1 accuracy (%)")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    if panels > 1:
        axes[0].set_title("by epoch", fontsize=10)
        _draw_ends(axes[1], variants, titles, looks)
    _legend(figure, variants, titles, looks)
    return figure


def titles_of(variants: Mapping[str, Variant]) -> dict[str, str]:
    """Return a title in words for each variant."""
    recipes = {label: variant.recipe.convert for label, variant in variants.items()}
    return in_words({label: (convert.rule, convert.options) for label, convert in recipes.items()})


def looks_of(variants: Mapping[str, Variant]) -> dict[str, dict[str, Any]]:
    """Return how each variant is drawn: in its rule's colour.

    Variants of one rule differ in shade where there is no other rule, and else in their dashes: a light shade
    would be another rule's colour.
    """
    by_rule: dict[str, list[str]] = {}
    for label, variant in variants.items():
        by_rule.setdefault(variant.recipe.convert.rule, []).append(label)
    if len(by_rule) == 1:
        ((rule, labels),) = by_rule.items()
        shades = shades_of(rule, len(labels))
        return {
            label: {"color": shade, "linestyle": "-"} for label, shade in zip(labels, shades, strict=True)
        }
    return {
        label: {"color": colour_of(rule), "linestyle": DASHES[index % len(DASHES)]}
        for rule, labels in by_rule.items()
        for index, label in enumerate(labels)
    }


def _draw_curve(panel: Any, variant: Variant, look: Mapping[str, Any]) -> None:
    curve = variant.epochs(run.accuracies for run in variant.runs)
    epochs = range(1, len(curve) + 1)
    panel.plot(epochs, [mean for mean, _ in curve], linewidth=1.4, **look)
    if len(variant.runs) > 1:
        low, high = ([mean + sign * std for mean, std in curve] for sign in (-1, 1))
        panel.fill_between(epochs, low, high, alpha=0.15, color=look["color"], linewidth=0)
    published = variant.paper.get("accuracy_by_epoch", [])
    panel.plot(range(1, len(published) + 1), published, color=look["color"], **PAPER_LINE)


def _draw_ends(
    panel: Any,
    variants: Mapping[str, Variant],
    titles: Mapping[str, str],
    looks: Mapping[str, Mapping[str, Any]],
) -> None:
    """Draw a row for each variant: a dot for each seed, mean with one standard deviation, the paper's."""
    rows, words = [], []
    for row, (label, variant) in enumerate(variants.items()):
        finals = [run.accuracies[-1] for run in variant.finished or variant.runs]
        mean, std = mean_and_std(finals)
        colour = looks[label]["color"]
        panel.plot(finals, [row] * len(finals), ".", color=colour, alpha=0.4, markersize=5)
        marker = marker_of(variant.recipe.convert.rule)
        panel.errorbar(mean, row, xerr=std or None, marker=marker, color=colour, capsize=3, markersize=6)
        if (published := variant.paper.get("final_mean")) is not None:
            spread = variant.paper.get("final_std")
            panel.errorbar(published, row + 0.3, xerr=spread, color=colour, **PAPER_MARK)
        rows.append(_row_name(titles[label], variant))
        words.append(f"{mean:.2f}" + (f" ± {std:.2f}" if len(finals) > 1 else ""))
    panel.set_yticks(range(len(rows)), rows)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    numbers = panel.secondary_yaxis("right")
    numbers.set_yticks(range(len(rows)), words)
    numbers.tick_params(length=0, labelsize=8)
    panel.grid(axis="x", color="0.9")
    panel.set_axisbelow(True)
    panel.set(xlabel="top-1 accuracy (%)")
    panel.set_title("after the last epoch", fontsize=10)


def _row_name(title: str, variant: Variant) -> str:
    """Return the title, with how far the longest run has come where none is finished."""
    done, length = max(len(run.records) for run in variant.runs), variant.recipe.train.epochs
    return title if done == length else f"{title} ({done} of {length} epochs)"


def _legend(
    figure: Any,
    variants: Mapping[str, Variant],
    titles: Mapping[str, str],
    looks: Mapping[str, Mapping[str, Any]],
) -> None:
    """Name what both panels show, each once: the variants, seeds, spread and the paper's."""
    from matplotlib.lines import Line2D

    ends = len(variants) > 1
    named: dict[str, Any] = {}
    for label, variant in variants.items():
        mark: dict[str, Any] = (
            {"marker": marker_of(variant.recipe.convert.rule), "markersize": 5} if ends else {}
        )
        named[titles[label]] = Line2D([], [], **looks[label], **mark)
    if any(len(variant.runs) > 1 for variant in variants.values()):
        if ends:
            named["one seed"] = Line2D([], [], color="gray", marker=".", linestyle="none", alpha=0.5)
        named[SPREAD] = band_handle()
    if any("accuracy_by_epoch" in variant.paper for variant in variants.values()):
        mark = {"marker": "d", "markerfacecolor": "none", "markersize": 5} if ends else {}
        named["the paper's mean"] = Line2D([], [], color="gray", **PAPER_LINE, **mark)
    rows = math.ceil(len(named) / (6 if ends else 3))
    look: dict[str, Any] = {
        "frameon": False,
        "fontsize": 8,
        "handlelength": 3,
        "ncols": math.ceil(len(named) / rows),
    }
    figure.legend(list(named.values()), list(named), loc="outside lower center", **look)
