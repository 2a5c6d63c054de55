"""Every model there is: conversion on the meta device, counted, timed and written to a table."""

from __future__ import annotations

import csv
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfa_convert.convert import convert
from pfa_convert.models import build


@dataclass(frozen=True)
class Coverage:
    """One line of the table: what became of one model.

    `status` is `converted`, `partly` or `failed`; `kinds` counts the sites by kind; `functional` those
    that a module applies itself; `share` is the percentage of the learned weights' elements that sit in
    converted sites; `seconds` is the conversion without building the model.
    """

    model: str
    status: str
    sites: int = 0
    functional: int = 0
    share: float = 0.0
    seconds: float = 0.0
    kinds: str = ""
    skipped: int = 0
    reasons: str = ""


def check(name: str, limit: int = 120) -> Coverage:
    """Convert one model on the meta device and return its line; a failure or a time-out is a line too."""

    def give_up(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"took more than {limit} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(limit)
    try:
        model = build_on_meta(name)
        started = time.perf_counter()
        report = convert(model, "fa", inplace=True).conversion
        seconds = time.perf_counter() - started
    except Exception as error:
        return Coverage(
            name, "failed", reasons=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        )
    finally:
        signal.alarm(0)
    converted = sum({site.weight: site.weight_elements for site in report.sites}.values())
    left = sum(skipped.elements for skipped in report.skipped)
    return Coverage(
        model=name,
        status="partly" if report.skipped else "converted",
        sites=len(report.sites),
        functional=sum(site.kind.endswith("()") for site in report.sites),
        share=round(100 * converted / (converted + left), 3) if converted + left else 100.0,
        seconds=round(seconds, 2),
        kinds=" ".join(f"{kind}:{n}" for kind, n in Counter(site.kind for site in report.sites).items()),
        skipped=len(report.skipped),
        reasons="; ".join(
            f"{n} x {reason}" for reason, n in Counter(s.reason for s in report.skipped).items()
        ),
    )


def build_on_meta(name: str) -> nn.Module:
    """Return the model without memory for its weights."""
    try:
        with torch.device("meta"):
            return build(name)
    except NotImplementedError:  # its constructor reads values that a meta tensor does not have
        return build(name).to("meta")


def check_all(names: Sequence[str], table: Path, jobs: int) -> Iterator[Coverage]:
    """Yield the line of each model, those first that the table has already; the table grows as they come."""
    known = {line.model: line for line in read_table(table)}
    yield from (known[name] for name in names if name in known)
    missing = [name for name in names if name not in known]
    if not missing:
        return
    new = not table.exists()
    with (
        ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        table.open("a", newline="") as file,
    ):
        writer = csv.DictWriter(file, [field.name for field in fields(Coverage)], lineterminator="\n")
        if new:
            writer.writeheader()
        for line in pool.map(check, missing, chunksize=4):
            writer.writerow(asdict(line))
            file.flush()
            yield line


def read_table(table: Path) -> list[Coverage]:
    """Return the lines of a table that `check_all` wrote."""
    if not table.exists():
        return []
    types = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(Coverage)}
    with table.open(newline="") as file:
        return [
            Coverage(**{key: types[key](value) for key, value in row.items()}) for row in csv.DictReader(file)
        ]
