"""`pfa-convert bench`: step time and memory over backpropagation's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from pfa_convert.commands.completion import complete_model
from pfa_convert.commands.outputs import refuse_unwritable
from pfa_convert.commands.values import key_values
from pfa_convert.errors import UserError
from pfa_convert.reporting.console import console, print_benchmark
from pfa_convert.reporting.progress import busy

if TYPE_CHECKING:
    from pfa_convert.bench import Settings, Variant


@click.command("bench")
@click.argument("model", shell_complete=complete_model)
@click.option("--rules", default="pfa,pfa-o,kp", show_default=True, help="Rules to measure.")
@click.option("--strategies", default="collapsed,fused", show_default=True, help="Strategies of each rule.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Measure with it, too, where a rule has it.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--image-size", type=click.IntRange(min=1), help="Pixels; the model's own by default.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Compile every variant.")
@click.option("--channels-last", is_flag=True)
@click.option(
    "--steps", type=click.IntRange(min=2), default=10, show_default=True, help="Measured steps of each."
)
@click.option("--scale", is_flag=True, help="Measure at a quarter of, half of, and the whole batch size.")
@click.option("--widths", help="Measure at these widths, for models with such an option: 16,32,64.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the growth with --scale or --widths.")
@click.option("--json", "as_json", is_flag=True)
def bench_command(
    model: str,
    rules: str,
    strategies: str,
    options: tuple[str, ...],
    batch_size: int,
    scale: bool,
    widths: str | None,
    plot: Path | None,
    compiled: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Measure step time and memory of rules and strategies over backpropagation's on MODEL.

    \b
    pfa-convert bench resnet18 --batch-size 16 --rules pfa,kp
    pfa-convert bench timm/vit_tiny_patch16_224 --rules pfa --option block_size=64
    pfa-convert bench paper/resnet20 --batch-size 128 --scale --plot growth.png
    """
    from pfa_convert.bench import Settings, bench_variants, measure
    from pfa_convert.devices import usable_device
    from pfa_convert.reporting.figures import growth_figure

    refuse_unwritable(plot, "--plot", "growth.png")
    usable_device(rest["device"])
    given = key_values(options, "--option")
    variants = bench_variants(rules.split(","), strategies.split(","), given)
    if unused := set(given) - {key for variant in variants for key, _ in variant.options}:
        raise UserError(f"no rule measured has the option {min(unused)!r}", where="--option")
    base = Settings(model=model, batch_size=batch_size, compile=compiled, **rest)
    settings = {batch_size: base}
    if widths is not None:
        settings = {width: replace(base, width=width) for width in _numbers(widths)}
    elif scale:
        sizes = sorted({max(1, batch_size // 4), max(1, batch_size // 2), batch_size})
        settings = {size: replace(base, batch_size=size) for size in sizes}
    tables = {}
    for value, setting in settings.items():
        with busy(Console(stderr=True), f"measuring {model}, {_what(setting, variants)}"):
            tables[value] = measure(setting, variants)
        if not as_json:
            print_benchmark(console, setting, tables[value])
    if as_json:
        click.echo(
            json.dumps({value: [asdict(m) for m in table] for value, table in tables.items()}, indent=1)
        )
    if plot is not None:
        axis = "width" if widths is not None else "batch size"
        growth_figure(tables, axis, f"{model}, {base.precision}, {base.device}", plot)


def _what(setting: Settings, variants: Sequence[Variant]) -> str:
    """Say what is being measured now."""
    width = "" if setting.width is None else f", width {setting.width}"
    return f"batches of {setting.batch_size}{width}: bp, {', '.join(map(str, variants))}"


def _numbers(text: str) -> list[int]:
    try:
        return sorted({int(number) for number in text.split(",")})
    except ValueError:
        raise UserError(f"{text!r} is not a list of whole numbers", where="--widths") from None
