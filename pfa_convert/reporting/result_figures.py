"""The paper's figures from runs: accuracy and alignment by epoch, accuracy by density, angle by expansion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pfa_convert.reporting.figures import pyplot_without_display
from pfa_convert.reporting.option_figures import (
    by_decay,
    by_option,
    density_figure,
    expansion_figure,
    forgetting_figure,
    varies,
)
from pfa_convert.reporting.results import Variant

MOST_CURVES = 14
"""An experiment with more variants than this gets no curves by epoch: they could not be told apart."""


@dataclass(frozen=True)
class Picture:
    """A figure of matplotlib's, its name, and the sentence below it."""

    name: str
    caption: str
    figure: Any


def pictures(experiment: str, variants: Mapping[str, Variant]) -> Iterator[Picture]:
    """Yield the figures that an experiment's runs have something for.

    Raises:
        UserError: if matplotlib is missing.
    """
    finished = {label: variant for label, variant in variants.items() if variant.finished}
    if len(variants) <= MOST_CURVES:
        yield Picture(
            f"{experiment}-accuracy",
            _curve_caption("Accuracy by epoch", variants, "accuracy_by_epoch", "dashed, the paper's"),
            accuracy_figure(variants),
        )
        aligned = {label: v for label, v in variants.items() if v.runs[0].by_site("angle_deg")}
        moving = {label: v for label, v in aligned.items() if _moves(v)}
        if moving:
            yield Picture(
                f"{experiment}-alignment",
                _curve_caption(
                    "Path angle and norm ratio between F and W by epoch, a line for each layer from the "
                    "input (dark) to the output (bright)",
                    moving,
                    "final_alignment_deg_by_layer",
                    "crosses at the end are those of the paper's seed 0",
                ),
                alignment_figure(moving),
            )
    by_density = by_option(finished, "feedback_density", 1.0)
    if varies(by_density):
        yield Picture(
            f"{experiment}-density",
            "Best accuracy of all epochs by the share of feedback connections that exist, mean over seeds; "
            "bars: one standard deviation"
            + ("; grey: backpropagation's." if (bp := finished.get("bp")) else "."),
            density_figure(by_density, bp),
        )
    decays = by_decay(finished)
    if varies(decays):
        yield Picture(
            f"{experiment}-forgetting",
            "Final path angle (mean over layers and seeds) and accuracy by the weight decay that a run "
            "begins with; a line for each number of epochs that it lasts.",
            forgetting_figure(decays),
        )
    by_expansion = {rule: points for rule, points in by_option(finished, "expansion").items() if points}
    if varies(by_expansion):
        yield Picture(
            f"{experiment}-expansion",
            "Final path angle by expansion, mean over layers and seeds, a point for each layer; the line is "
            "atan(1/sqrt(expansion)).",
            expansion_figure(by_expansion),
        )


def _curve_caption(what: str, variants: Mapping[str, Variant], published: str, its_marks: str) -> str:
    """Say what is drawn, and of bands and the paper's marks only what there is."""
    said = [what]
    if any(len(variant.runs) > 1 for variant in variants.values()):
        said.append("mean over the seeds, band of one standard deviation")
    if any(published in variant.paper for variant in variants.values()):
        said.append(its_marks)
    return "; ".join(said) + "."


def accuracy_figure(variants: Mapping[str, Variant]) -> Any:
    """Draw accuracy by epoch, whole on the left and, of several variants, close to the final values."""
    pyplot = pyplot_without_display()
    panels = min(2, len(variants))
    figure, (axes,) = pyplot.subplots(
        1, panels, figsize=(5.5 * panels, 4.2), layout="constrained", squeeze=False
    )
    finals = []
    for label, variant in variants.items():
        curve = variant.epochs(run.accuracies for run in variant.runs)
        epochs = range(1, len(curve) + 1)
        mean = [m for m, _ in curve]
        published = variant.paper.get("accuracy_by_epoch", [])
        finals += [mean[-1], *published[-1:]]
        for panel in axes:
            (line,) = panel.plot(epochs, mean, label=label, linewidth=1.3)
            low, high = ([m + sign * s for m, s in curve] for sign in (-1, 1))
            panel.fill_between(epochs, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
            panel.plot(
                range(1, len(published) + 1), published, color=line.get_color(), linestyle="--", linewidth=0.8
            )
    for panel in axes:
        panel.set(xlabel="epoch", ylabel="top-1 accuracy (%)")
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False, fontsize=8)
    if panels > 1:
        best = max(finals)
        lowest = min(value for value in finals if value > best - 5)
        margin = max(0.15 * (best - lowest), 0.05)
        axes[1].set_ylim(lowest - 4 * margin, best + margin)
        for panel, title in zip(axes, ("all", "close to the best"), strict=True):
            panel.set_title(title, fontsize=9)
    return figure


def alignment_figure(variants: Mapping[str, Variant]) -> Any:
    """Draw path angle (above) and norm ratio (below) of each layer by epoch, a column for each variant."""
    pyplot = pyplot_without_display()
    figure, axes = pyplot.subplots(
        2,
        len(variants),
        figsize=(2.4 * len(variants) + 1, 5),
        sharex="col",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    rows = (("angle_deg", "final_alignment_deg_by_layer"), ("norm_ratio", "final_norm_ratio_by_layer"))
    for column, (label, variant) in enumerate(variants.items()):
        axes[0][column].set_title(label, fontsize=9)
        axes[1][column].set_xlabel("epoch")
        axes[1][column].xaxis.get_major_locator().set_params(integer=True)
        for row, (key, published) in enumerate(rows):
            _draw_layers(axes[row][column], variant, key, variant.paper.get(published, []))
    axes[0][0].set_ylabel("path angle (degrees)")
    axes[1][0].set_ylabel("norm ratio |F| / |W|")
    return figure


def _draw_layers(panel: Any, variant: Variant, key: str, published: list[float]) -> None:
    colours = pyplot_without_display().get_cmap("viridis")
    first = max(run.first_aligned for run in variant.runs)
    by_run = [
        {site: values[first - run.first_aligned :] for site, values in run.by_site(key).items()}
        for run in variant.runs
    ]
    for index, site in enumerate(by_run[0]):
        colour = colours(index / max(1, len(by_run[0]) - 1) * 0.9)
        curve = variant.epochs(run[site] for run in by_run)
        epochs = range(first, first + len(curve))
        panel.plot(epochs, [m for m, _ in curve], color=colour, linewidth=1.1)
        low, high = ([m + sign * s for m, s in curve] for sign in (-1, 1))
        panel.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        if index < len(published):
            panel.plot([variant.recipe.train.epochs], [published[index]], "x", color=colour, markersize=6)


def _moves(variant: Variant) -> bool:
    """Return whether any layer's feedback weight is ever away from its forward weight."""
    sites: Iterable[list[float]] = variant.runs[0].by_site("angle_deg").values()
    return any(angle > 0 for site in sites for angle in site)
