"""Which figures an experiment's runs have something for, with their captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pfa_convert.reporting.accuracy_figure import accuracy_figure
from pfa_convert.reporting.alignment_figure import alignment_figure, deep
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

    @property
    def narrow(self) -> bool:
        """Whether a phone shows the whole width of it."""
        return bool(self.figure.get_figwidth() <= 7)


def pictures(experiment: str, variants: Mapping[str, Variant]) -> Iterator[Picture]:
    """Yield the figures that an experiment's runs have something for.

    Raises:
        UserError: if matplotlib is missing.
    """
    if len(variants) <= MOST_CURVES:
        yield Picture(f"{experiment}-accuracy", _accuracy_caption(variants), accuracy_figure(variants))
        aligned = {label: v for label, v in variants.items() if v.runs[0].by_site("angle_deg")}
        moving = {label: v for label, v in aligned.items() if _moves(v)}
        if moving:
            yield Picture(f"{experiment}-alignment", _alignment_caption(moving), alignment_figure(moving))
    yield from _by_options(experiment, {label: v for label, v in variants.items() if v.finished})


def _by_options(experiment: str, finished: Mapping[str, Variant]) -> Iterator[Picture]:
    by_density = by_option(finished, "feedback_density", 1.0)
    if varies(by_density):
        bp = finished.get("bp")
        among = [bp, *(v for points in by_density.values() for v in points.values())]
        bars = any(v is not None and len(v.finished) > 1 for v in among)
        yield Picture(
            f"{experiment}-density",
            "Best accuracy of all epochs by the share of feedback connections that exist"
            + (", mean over the seeds and one standard deviation" if bars else "")
            + ("; black: backpropagation." if bp else "."),
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
            "Final path angle by expansion: the mean over layers and seeds, a dot for each layer, and what "
            "is expected of a random B, atan(1/sqrt(expansion)).",
            expansion_figure(by_expansion),
        )


def _accuracy_caption(variants: Mapping[str, Variant]) -> str:
    """Say what is drawn, and of bands and the paper's curves only what there is."""
    what = "Accuracy by epoch" + (", and after the last one" if len(variants) > 1 else "")
    said = [what, *_band(variants)]
    if any("accuracy_by_epoch" in variant.paper for variant in variants.values()):
        said.append("dashed, the paper's")
    return "; ".join(said) + "."


def _alignment_caption(variants: Mapping[str, Variant]) -> str:
    """The same for the path angles."""
    what = "Path angle (above) and norm ratio (below) between F and W by epoch"
    if deep(variants):
        seeds = any(len(variant.runs) > 1 for variant in variants.values())
        return f"{what}: a row for each layer" + (", mean over the seeds." if seeds else ".")
    said = [f"{what}, a line for each layer", *_band(variants)]
    if any("final_alignment_deg_by_layer" in variant.paper for variant in variants.values()):
        said.append("crosses at the end are those of the paper's seed 0")
    return "; ".join(said) + "."


def _band(variants: Mapping[str, Variant]) -> list[str]:
    seeds = any(len(variant.runs) > 1 for variant in variants.values())
    return ["mean over the seeds, band of one standard deviation"] if seeds else []


def _moves(variant: Variant) -> bool:
    """Return whether any layer's feedback weight is ever away from its forward weight."""
    sites: Iterable[list[float]] = variant.runs[0].by_site("angle_deg").values()
    return any(angle > 0 for site in sites for angle in site)
