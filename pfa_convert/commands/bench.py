"""`pfa-convert bench`: step time and memory over backpropagation's."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from pfa_convert.reporting.console import console, print_benchmark
from pfa_convert.training.bench import Settings as BenchSettings
from pfa_convert.training.bench import bench_variants, measure


@click.command("bench")
@click.argument("model")
@click.option("--rules", default="pfa,pfa-o,kp", show_default=True, help="Rules to measure.")
@click.option("--strategies", default="collapsed,fused", show_default=True, help="Strategies of each rule.")
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
@click.option("--json", "as_json", is_flag=True)
def bench_command(
    model: str,
    rules: str,
    strategies: str,
    batch_size: int,
    scale: bool,
    compiled: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Measure step time and memory of rules and strategies over backpropagation's on MODEL."""
    variants = bench_variants(rules.split(","), strategies.split(","))
    sizes = sorted({max(1, batch_size // 4), max(1, batch_size // 2), batch_size}) if scale else [batch_size]
    tables = {}
    for size in sizes:
        settings = BenchSettings(model=model, batch_size=size, compile=compiled, **rest)
        tables[size] = measure(settings, variants)
        if not as_json:
            print_benchmark(console, settings, tables[size])
    if as_json:
        click.echo(json.dumps({size: [asdict(m) for m in table] for size, table in tables.items()}, indent=1))
