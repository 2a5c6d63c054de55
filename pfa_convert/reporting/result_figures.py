"""The paper's figures from runs: accuracy and alignment by epoch, accuracy by density, angle by expansion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pfa_convert.reporting.figures import pyplot_without_display
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
    by_density = _by_option(finished, "feedback_density", 1.0)
    if _varies(by_density):
        yield Picture(
            f"{experiment}-density",
            "Best accuracy of all epochs by the share of feedback connections that exist, mean over seeds; "
            "bars: one standard deviation"
            + ("; grey: backpropagation's." if (bp := finished.get("bp")) else "."),
            density_figure(by_density, bp),
        )
    by_decay = _by_decay(finished)
    if _varies(by_decay):
        yield Picture(
            f"{experiment}-forgetting",
            "Final path angle (mean over layers and seeds) and accuracy by the weight decay that a run "
            "begins with; a line for each number of epochs that it lasts.",
            forgetting_figure(by_decay),
        )
    by_expansion = {rule: points for rule, points in _by_option(finished, "expansion").items() if points}
    if _varies(by_expansion):
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


def density_figure(points: Mapping[str, Mapping[float, Variant]], bp: Variant | None = None) -> Any:
    """Draw the best accuracy by density, a line for each rule, and backpropagation's as a band."""
    pyplot = pyplot_without_display()
    figure, panel = pyplot.subplots(figsize=(6, 4.2), layout="constrained")
    for rule, by_density in points.items():
        curve = [
            variant.epochs([[max(r.accuracies)] for r in variant.finished])[0]
            for variant in by_density.values()
        ]
        panel.errorbar(
            list(by_density), [m for m, _ in curve], [s for _, s in curve], marker="o", capsize=3, label=rule
        )
    if bp is not None:
        ((mean, std),) = bp.epochs([[max(run.accuracies)] for run in bp.finished])
        panel.axhspan(mean - std, mean + std, color="gray", alpha=0.25, linewidth=0)
        panel.axhline(mean, color="gray", linewidth=0.8, label="bp")
    panel.set_xscale("log")
    densities = sorted({density for by_density in points.values() for density in by_density})
    panel.set_xticks(densities, [f"{density:g}" for density in densities])
    panel.minorticks_off()
    panel.set(xlabel="density of the feedback connections", ylabel="best top-1 accuracy (%)")
    panel.legend(frameon=False)
    return figure


def expansion_figure(points: Mapping[str, Mapping[float, Variant]]) -> Any:
    """Draw the final path angle by expansion, beside the one that is expected of a random B."""
    pyplot = pyplot_without_display()
    figure, panel = pyplot.subplots(figsize=(6, 4.2), layout="constrained")
    for rule, by_expansion in points.items():
        angles = {e: [m for m, _ in v.at_end("angle_deg").values()] for e, v in by_expansion.items()}
        (line,) = panel.plot(
            list(angles), [fmean(layers) for layers in angles.values()], marker="o", label=rule
        )
        for expansion, layers in angles.items():
            panel.plot([expansion] * len(layers), layers, ".", color=line.get_color(), alpha=0.5)
    expansions = sorted({e for by_expansion in points.values() for e in by_expansion})
    expected = [math.degrees(math.atan(1 / math.sqrt(e))) for e in expansions]
    panel.plot(expansions, expected, "k--", linewidth=0.8, label="expected")
    panel.set_xscale("log")
    panel.set_xticks(expansions, [f"{e:g}" for e in expansions])
    panel.minorticks_off()
    panel.set(xlabel="expansion N_mid / N_out", ylabel="final path angle (degrees)", ylim=(0, None))
    panel.legend(frameon=False)
    return figure


def forgetting_figure(points: Mapping[str, Mapping[float, Variant]]) -> Any:
    """Draw final angle and final accuracy by the first weight decay, a line for each length of it."""
    pyplot = pyplot_without_display()
    figure, (angles, accuracies) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for label, by_strength in points.items():
        mean_angles = [fmean(m for m, _ in v.at_end("angle_deg").values()) for v in by_strength.values()]
        finals = [fmean(run.accuracies[-1] for run in v.finished) for v in by_strength.values()]
        angles.plot(list(by_strength), mean_angles, marker="o", label=label)
        accuracies.plot(list(by_strength), finals, marker="o", label=label)
    strengths = sorted({strength for by_strength in points.values() for strength in by_strength})
    for panel in (angles, accuracies):
        panel.set(xscale="log", xlabel="weight decay at first")
        panel.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
        panel.minorticks_off()
    angles.set(ylabel="final path angle (degrees)", ylim=(0, None))
    accuracies.set(ylabel="top-1 accuracy (%)")
    angles.legend(frameon=False)
    return figure


def _by_decay(variants: Mapping[str, Variant]) -> dict[str, dict[float, Variant]]:
    """Return the variants whose decay falls once, by rule and length of the first decay, then by strength."""
    points: dict[str, dict[float, Variant]] = {}
    for variant in variants.values():
        train = variant.recipe.train
        until = train.weight_decay_schedule.milestones
        if len(until) == 1:
            label = f"{variant.recipe.convert.rule}, {until[0]:g} epoch" + "s" * (until[0] != 1)
            points.setdefault(label, {})[train.optimizer.weight_decay] = variant
    return {label: dict(sorted(by_strength.items())) for label, by_strength in sorted(points.items())}


def _by_option(
    variants: Mapping[str, Variant], option: str, default: float | None = None
) -> dict[str, dict[float, Variant]]:
    """Return the variants by rule and by the value of an option, in ascending order."""
    points: dict[str, dict[float, Variant]] = {}
    for variant in variants.values():
        value = variant.recipe.convert.options.get(option, default)
        if value is not None and variant.recipe.convert.rule != "bp":
            # Recipes that differ in something else as well are a line of their own.
            others = [d for d in variant.differences.split(", ") if d and not d.startswith(f"{option}=")]
            points.setdefault(" ".join([variant.recipe.convert.rule, *others]), {})[float(value)] = variant
    return {rule: dict(sorted(by_value.items())) for rule, by_value in points.items()}


def _varies(points: Mapping[str, Mapping[float, Variant]]) -> bool:
    return any(len(by_value) > 1 for by_value in points.values())


def _moves(variant: Variant) -> bool:
    """Return whether any layer's feedback weight is ever away from its forward weight."""
    sites: Iterable[list[float]] = variant.runs[0].by_site("angle_deg").values()
    return any(angle > 0 for site in sites for angle in site)
