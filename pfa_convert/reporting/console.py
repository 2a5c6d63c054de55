"""Tables in the terminal of what was done: a conversion, a run, a benchmark, an inspection."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pfa_convert.reporting.style import signed

if TYPE_CHECKING:
    from pfa_convert.bench import Measurement, Settings
    from pfa_convert.graph.report import ConversionReport, SiteReport
    from pfa_convert.inspection import SiteInspection
    from pfa_convert.recipe import ExpectSection, Recipe
    from pfa_convert.training.record import RunResult
    from pfa_convert.zoo.sweep import Line

console = Console(highlight=False, soft_wrap=True, emoji=False)

MUCH_LEFT, FORGOTTEN = 0.05, 0.01
"""Shares of a start in F: what is worth a remark, and what counts as forgotten."""

ROWS = 24
"""A model with more sites than this is shown by groups."""

UNROLLED_ROUNDING = 1e-4
"""Recurrent layers that run step by step round otherwise than fused ones: outputs may differ so much."""


def _option(rule: str, key: str, value: Any) -> str:
    """Return an option as the table shows it: none that is not set, no default choice, no share of 1."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        from pfa_convert.rules import RULES

        known = ":" in rule or rule in RULES  # a class that is not registered may state any name
        return "" if known and RULES[rule].model_fields[key].default == value else f"{key}={value}"
    return "" if value == 1 else f"{key}={value:g}"


def conversion_table(report: ConversionReport, every_site: bool = False) -> Table:
    """Return a table of the sites: one row each, or one row for each run of alike sites."""
    table = Table("site", "kind", "weight", "rule", "feedback", box=None, header_style="bold", pad_edge=False)
    grouped = not every_site and len(report.sites) > ROWS
    for group in _groups(report.sites) if grouped else [[site] for site in report.sites]:
        first, last = group[0], group[-1]
        name = first.name if len(group) == 1 else f"{first.name} … {last.name} ({len(group)})"
        shapes = {"x".join(map(str, site.weight_shape)) for site in group}
        elements = sum(site.feedback_elements for site in group)
        shape = shapes.pop() if len(shapes) == 1 else f"{len(shapes)} shapes"
        options = ", ".join(filter(None, (_option(first.rule, *option) for option in first.options.items())))
        table.add_row(name, first.kind, shape, f"{first.rule} {options}".strip(), f"{elements:,}")
    return table


def _groups(sites: tuple[SiteReport, ...]) -> list[list[SiteReport]]:
    """Group successive sites of the same top-level part, kind and rule."""

    def key(site: SiteReport) -> tuple[Any, ...]:
        return site.name.split(".")[0], site.kind, site.rule, str(site.options)

    return [list(group) for _, group in groupby(sites, key)]


def rounding_allowed(report: ConversionReport) -> float:
    """Return by how much the converted model's outputs may differ from the plain one's."""
    return UNROLLED_ROUNDING if report.settings.get("unroll") else 0.0


def print_conversion(console: Console, summary: dict[str, Any], report: ConversionReport) -> None:
    """Print what a conversion did."""
    console.print(
        f"[bold]{summary['model']}[/bold]: {summary['parameters']:,} parameters, converted in "
        f"{summary['conversion_seconds']:.2f} s"
    )
    console.print(conversion_table(report))
    counts = ", ".join(f"{count} {rule}" for rule, count in report.counts().items())
    console.print(f"\n{len(report.sites)} sites converted ({counts}), {len(report.skipped)} skipped")
    for one in report.skipped:
        console.print(f"  skipped {one.name} ({one.kind}): {one.reason}", markup=False)
    console.print(f"{report.feedback_elements:,} feedback elements added")
    difference = summary["forward_max_difference"]
    if difference is None:
        console.print(f"forward not checked: {summary['forward_check']}")
    else:
        verdict = "unchanged to the last bit" if difference == 0 else f"CHANGED by up to {difference:g}"
        if 0 < difference <= rounding_allowed(report):
            verdict = f"unchanged but for rounding, {difference:.1g}: recurrent layers run step by step"
        console.print(f"forward check in training and evaluation mode: {verdict}")


def print_result(console: Console, recipe: Recipe, result: RunResult) -> None:
    """Print a run's summary beside the published number, if the recipe has one."""
    console.print(
        f"\n[bold]{result.name}[/bold] seed {result.seed}: {result.evaluated_on} top-1 "
        f"[bold]{result.final_top1:.2f} %[/bold] "
        f"(best {result.best_top1:.2f} % at epoch {result.best_epoch}), {result.seconds:.1f} s"
    )
    for site, angle in result.angle_deg.items():
        console.print(f"  {site:<24} angle {angle:6.2f} deg   norm ratio {result.norm_ratio[site]:.3f}")
    if result.angle_deg:
        console.print(alignment_line(recipe, result), markup=False)
    if recipe.expect:
        console.print(_beside_published(recipe.expect, result), markup=False)
    console.print(f"everything is in {result.folder}", markup=False)


def alignment_line(recipe: Recipe, result: RunResult) -> str:
    """Say how aligned a run has ended, how much of the start is left in F, and what would forget it."""
    angles = result.angle_deg.values()
    line = f"path angles {min(angles):.1f} to {max(angles):.1f} degrees"
    if not result.start_left:
        return line
    left = max(result.start_left.values())
    line += f"; {left:.1%} of F is what it began with, where it is most"
    if left <= MUCH_LEFT:
        return line
    if steps := recipe.train.forgetting:
        return f"{line}: to align further, train longer, or lower train.forgetting (now {steps:g} steps)"
    decay = recipe.train.optimizer.weight_decay
    enough = f", to about {decay * math.log(FORGOTTEN) / math.log(left):.2g}" if decay and left < 1 else ""
    return (
        f"{line}: to align further, raise train.optimizer.weight_decay (now {decay:g}{enough}); "
        "train.weight_decay_schedule can end it after the first epochs; or give train.forgetting some steps"
    )


def _beside_published(expect: ExpectSection, result: RunResult) -> str:
    """Return a line with the published accuracy, and the difference to it if the run has the same length."""
    spread = f" ± {expect.std}" if expect.std is not None else ""
    published = f"published: {expect.mean}{spread} % ({expect.source})"
    if expect.epochs not in (None, result.epochs):
        return f"{published} after {expect.epochs} epochs; {result.epochs} of them are too few to compare"
    measured = result.test_top1_at_best if expect.metric == "test_top1" else None
    return f"{published}, this run {signed((measured or result.final_top1) - expect.mean)}"


def print_benchmark(console: Console, settings: Settings, measurements: list[Measurement]) -> None:
    """Print each variant's cost over backpropagation's."""
    import torch

    size = f", {settings.image_size} px" if settings.image_size else ""
    size += f", width {settings.width}" if settings.width else ""
    threads = f"{torch.get_num_threads()} threads" if settings.device == "cpu" else settings.device
    compiled = ", compiled" if settings.compile else ""
    console.print(
        f"[bold]{settings.model}[/bold], batch {settings.batch_size}{size}, {settings.precision}{compiled}, "
        f"{threads}, torch {torch.__version__}, {settings.steps} rounds"
    )
    table = Table("variant", box=None, header_style="bold", pad_edge=False)
    for heading in ("step ms", "x BP", "quartiles", "floor", "memory MB", "x BP"):
        table.add_column(heading, justify="right")
    for m in measurements:
        table.add_row(
            m.variant,
            f"{m.milliseconds:.1f}",
            f"{m.ratio:.3f}",
            f"{m.ratio_low:.3f}-{m.ratio_high:.3f}",
            f"{m.flop_ratio:.3f}",
            f"{m.megabytes:.0f}",
            f"{m.memory_ratio:.3f}",
        )
    console.print(table)


def print_sweep(console: Console, lines: Sequence[Line]) -> None:
    """Print how many models ended in which way, and the reasons."""
    for status, count in Counter(line.status for line in lines).most_common():
        console.print(f"{count:>5} {status}")
    reasons = Counter(reason for line in lines for reason in line.reasons.split("; ") if reason)
    for reason, count in reasons.most_common():
        console.print(f"{count:>5} models: {reason}", markup=False)


def print_inspection(console: Console, title: str, found: Mapping[str, SiteInspection]) -> None:
    """Print a line for each site; a dash stands for what its rule does not have.

    `gradient` is the angle to backpropagation's, `start left` the share of F that is not forgotten, and
    `B B^T` the range of its eigenvalues. A second table tells how symmetric the connections are:
    the correlation of F with W, the share of connections with one in the other direction beside them, and
    how like a forward neuron each backward neuron is, and each other forward one (`pfa_convert.symmetry`).
    """
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("site", no_wrap=True)
    table.add_column("rule", no_wrap=True)
    for heading in ("angle", "|F|/|W|", "gradient", "start left", "B B^T"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, site in found.items():
        spectrum = site.eigenvalues
        table.add_row(
            name,
            site.rule,
            _or_dash(site.angle_deg, "{:.1f}°"),
            _or_dash(site.norm_ratio, "{:.3f}"),
            _or_dash(site.gradient_angle_deg, "{:.1f}°"),
            _or_dash(site.share_of_start, "{:.1e}"),
            f"{spectrum[0]:.2f}-{spectrum[-1]:.2f}" if spectrum else "-",
        )
    console.print(table)
    console.print(_symmetry_table(found))


def _symmetry_table(found: Mapping[str, SiteInspection]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("symmetry of", no_wrap=True)
    for heading in ("correlation of F, W", "reciprocal", "closest neuron", "among forward ones"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, site in found.items():
        figures = (site.correlation, site.reciprocal, site.closest, site.closest_forward)
        table.add_row(name, *(_or_dash(figure, "{:.2f}") for figure in figures))
    return table


def _or_dash(value: float, form: str) -> str:
    if math.isnan(value):
        return "-"
    text = form.format(value)
    # What rounds to zero has no sign.
    return text if any(digit in "123456789" for digit in text) else text.removeprefix("-")
