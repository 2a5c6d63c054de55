"""The figures of results by an option of the recipe: density, expansion, strength of the first decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from pfa_convert.reporting.figures import pyplot_without_display
from pfa_convert.reporting.results import Variant


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


def by_decay(variants: Mapping[str, Variant]) -> dict[str, dict[float, Variant]]:
    """Return the variants whose decay falls once, by rule and length of the first decay, then by strength."""
    points: dict[str, dict[float, Variant]] = {}
    for variant in variants.values():
        train = variant.recipe.train
        until = train.weight_decay_schedule.milestones
        if len(until) == 1:
            label = f"{variant.recipe.convert.rule}, {until[0]:g} epoch" + "s" * (until[0] != 1)
            points.setdefault(label, {})[train.optimizer.weight_decay] = variant
    return {label: dict(sorted(by_strength.items())) for label, by_strength in sorted(points.items())}


def by_option(
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


def varies(points: Mapping[str, Mapping[float, Variant]]) -> bool:
    """Return whether any rule has more than one value of the option."""
    return any(len(by_value) > 1 for by_value in points.values())
