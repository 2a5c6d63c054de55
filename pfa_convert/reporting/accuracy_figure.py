"""The figure of accuracies: by epoch on the left, at the end on the right, a row for each variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pfa_convert.reporting.figures import pyplot_without_display
from pfa_convert.reporting.results import Variant, mean_and_std
from pfa_convert.reporting.style import in_words, marker_of, shades_of

PAPER_LINE: dict[str, Any] = {"linestyle": "--", "linewidth": 0.9}
PAPER_MARK: dict[str, Any] = {"marker": "d", "markerfacecolor": "none", "linestyle": "none", "capsize": 2}


def accuracy_figure(variants: Mapping[str, Variant]) -> Any:
    """Draw accuracy by epoch and, of several variants, the last one of each with its spread."""
    pyplot = pyplot_without_display()
    panels = min(2, len(variants))
    height = max(4.2, 1.6 + 0.34 * len(variants))
    figure, (axes,) = pyplot.subplots(
        1, panels, figsize=(5.6 * panels, height), layout="constrained", squeeze=False
    )
    titles, colours = titles_of(variants), colours_of(variants)
    for label, variant in variants.items():
        _draw_curve(axes[0], variant, colours[label], titles[label])
    axes[0].set(xlabel="epoch", ylabel="top-1 accuracy (%)")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    _legend(axes[0], variants)
    if panels > 1:
        axes[0].set_title("by epoch", fontsize=10)
        _draw_ends(axes[1], variants, titles, colours)
    return figure


def titles_of(variants: Mapping[str, Variant]) -> dict[str, str]:
    """Return a title in words for each variant."""
    recipes = {label: variant.recipe.convert for label, variant in variants.items()}
    return in_words({label: (convert.rule, convert.options) for label, convert in recipes.items()})


def colours_of(variants: Mapping[str, Variant]) -> dict[str, Any]:
    """Return each variant's colour: its rule's, in shades where a rule has several variants."""
    by_rule: dict[str, list[str]] = {}
    for label, variant in variants.items():
        by_rule.setdefault(variant.recipe.convert.rule, []).append(label)
    return {
        label: shade
        for rule, labels in by_rule.items()
        for label, shade in zip(labels, shades_of(rule, len(labels)), strict=True)
    }


def _draw_curve(panel: Any, variant: Variant, colour: Any, title: str) -> None:
    curve = variant.epochs(run.accuracies for run in variant.runs)
    epochs = range(1, len(curve) + 1)
    panel.plot(epochs, [mean for mean, _ in curve], label=title, linewidth=1.4, color=colour)
    if len(variant.runs) > 1:
        low, high = ([mean + sign * std for mean, std in curve] for sign in (-1, 1))
        panel.fill_between(epochs, low, high, alpha=0.15, color=colour, linewidth=0)
    published = variant.paper.get("accuracy_by_epoch", [])
    panel.plot(range(1, len(published) + 1), published, color=colour, **PAPER_LINE)


def _legend(panel: Any, variants: Mapping[str, Variant]) -> None:
    """Name the curves, and what dashes and bands stand for where there are any."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles, names = panel.get_legend_handles_labels()
    if any("accuracy_by_epoch" in variant.paper for variant in variants.values()):
        handles.append(Line2D([], [], color="gray", **PAPER_LINE))
        names.append("the paper's mean")
    if any(len(variant.runs) > 1 for variant in variants.values()):
        handles.append(Patch(color="gray", alpha=0.25, linewidth=0))
        names.append("± 1 standard deviation")
    panel.legend(handles, names, frameon=False, fontsize=8)


def _draw_ends(
    panel: Any, variants: Mapping[str, Variant], titles: Mapping[str, str], colours: Mapping[str, Any]
) -> None:
    """Draw a row for each variant: a dot for each seed, mean with one standard deviation, the paper's."""
    from matplotlib.lines import Line2D

    rows, words, several = [], [], False
    for row, (label, variant) in enumerate(variants.items()):
        finals = [run.accuracies[-1] for run in variant.runs]
        mean, std = mean_and_std(finals)
        colour, several = colours[label], several or len(finals) > 1
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
    handles, names = [], []
    if several:
        handles.append(Line2D([], [], color="gray", marker=".", linestyle="none", alpha=0.5))
        names.append("one seed")
        handles.append(Line2D([], [], color="gray", marker="o"))
        names.append("mean ± 1 standard deviation")
    if any("final_mean" in variant.paper for variant in variants.values()):
        handles.append(Line2D([], [], color="gray", marker="d", markerfacecolor="none", linestyle="none"))
        names.append("the paper's")
    if handles:
        panel.figure.legend(handles, names, frameon=False, fontsize=8, ncols=3, loc="outside lower right")


def _row_name(title: str, variant: Variant) -> str:
    """Return the title, with how far the longest run has come where none is finished."""
    done, length = max(len(run.records) for run in variant.runs), variant.recipe.train.epochs
    return title if done == length else f"{title} ({done} of {length} epochs)"
