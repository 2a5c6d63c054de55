"""The figures of results by an option of the recipe: density, expansion, strength of the first decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from pfa_convert.reporting.figures import pyplot_without_display
from pfa_convert.reporting.results import Variant, mean_and_std
from pfa_convert.reporting.style import EXPANSION_LABEL, SPREAD, angle_axis, colour_of, marker_of, shades_of


def density_figure(points: Mapping[str, Mapping[float, Variant]], bp: Variant | None = None) -> Any:
    """Draw the best accuracy by density, a line for each rule, and backpropagation's as a band."""
    figure, panel = pyplot_without_display().subplots(figsize=(6, 4.2), layout="constrained")
    several = False
    for label, by_density in points.items():
        curve = [_best(variant) for variant in by_density.values()]
        spread = [std for _, std in curve] if any(std for _, std in curve) else None
        several = several or spread is not None
        means = [mean for mean, _ in curve]
        panel.errorbar(list(by_density), means, spread, capsize=3, label=label, **_look(by_density))
    if bp is not None:
        mean, std = _best(bp)
        panel.axhspan(mean - std, mean + std, color=colour_of("bp"), alpha=0.15, linewidth=0)
        several = several or std > 0
        panel.axhline(mean, color=colour_of("bp"), linewidth=0.9, label="bp")
    _log_axis(panel, points, "density of the feedback connections")
    panel.set(ylabel="best top-1 accuracy (%)")
    panel.legend(frameon=False, fontsize=9, title=f"mean {SPREAD}" if several else None)
    return figure


def _best(variant: Variant) -> tuple[float, float]:
    """Return mean and standard deviation over the seeds of each run's best epoch."""
    return mean_and_std(max(run.accuracies) for run in variant.finished)


def expansion_figure(points: Mapping[str, Mapping[float, Variant]]) -> Any:
    """Draw the final path angle by expansion, beside the one that is expected of a random B."""
    figure, panel = pyplot_without_display().subplots(figsize=(6, 4.2), layout="constrained")
    drawn: list[float] = []
    for label, by_expansion in points.items():
        angles = {e: [mean for mean, _ in v.at_end("angle_deg").values()] for e, v in by_expansion.items()}
        look = _look(by_expansion)
        means = [fmean(layers) for layers in angles.values()]
        panel.plot(list(angles), means, label=f"{label}, mean of the layers", **look)
        for index, (expansion, layers) in enumerate(angles.items()):
            named = {} if index else {"label": f"{label}, one layer"}
            panel.plot([expansion] * len(layers), layers, ".", color=look["color"], alpha=0.5, **named)
            drawn += layers
    expansions = sorted({e for by_expansion in points.values() for e in by_expansion})
    expected = [math.degrees(math.atan(1 / math.sqrt(e))) for e in expansions]
    panel.plot(expansions, expected, "--", color="0.4", linewidth=0.9, label="expected of a random B")
    _log_axis(panel, points, EXPANSION_LABEL)
    panel.set(ylabel="final path angle (degrees)")
    angle_axis(panel, drawn)
    panel.legend(frameon=False, fontsize=9)
    return figure


def forgetting_figure(points: Mapping[str, Mapping[float, Variant]]) -> Any:
    """Draw final angle and final accuracy by the first weight decay, a line for each length of it."""
    figure, (angles, accuracies) = pyplot_without_display().subplots(
        1, 2, figsize=(10, 4.2), layout="constrained"
    )
    drawn: list[float] = []
    rules = [next(iter(by_strength.values())).recipe.convert.rule for by_strength in points.values()]
    for index, (label, by_strength) in enumerate(points.items()):
        same = [place for place, rule in enumerate(rules) if rule == rules[index]]
        look = {"color": shades_of(rules[index], len(same))[same.index(index)], "marker": "osD^vP"[index % 6]}
        means = [fmean(m for m, _ in v.at_end("angle_deg").values()) for v in by_strength.values()]
        finals = [fmean(run.accuracies[-1] for run in v.finished) for v in by_strength.values()]
        angles.plot(list(by_strength), means, label=label, **look)
        accuracies.plot(list(by_strength), finals, **look)
        drawn += means
    for panel in (angles, accuracies):
        _log_axis(panel, points, "first weight decay")
    angles.set(ylabel="final path angle (degrees)")
    angle_axis(angles, drawn)
    accuracies.set(ylabel="top-1 accuracy (%)")
    angles.legend(frameon=False, fontsize=9)
    return figure


def _look(by_value: Mapping[float, Variant]) -> dict[str, Any]:
    """Return colour and marker of the rule that these variants have."""
    rule = next(iter(by_value.values())).recipe.convert.rule
    return {"color": colour_of(rule), "marker": marker_of(rule)}


def _log_axis(panel: Any, points: Mapping[str, Mapping[float, Variant]], label: str) -> None:
    """Give the x axis a tick at each value that there is, on a logarithmic scale."""
    values = sorted({value for by_value in points.values() for value in by_value})
    panel.set(xscale="log", xlabel=label)
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.minorticks_off()


def by_decay(variants: Mapping[str, Variant]) -> dict[str, dict[float, Variant]]:
    """Return the variants whose decay falls once, by rule and length of the first decay, then by strength."""
    points: dict[str, dict[float, Variant]] = {}
    for variant in variants.values():
        train = variant.recipe.train
        until = train.weight_decay_schedule.milestones
        if len(until) == 1:
            label = f"{variant.recipe.convert.rule}, decay for {until[0]:g} epoch" + "s" * (until[0] != 1)
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
