"""What `pfa-convert MODEL` does: make the model or read it, convert it, compare the forwards."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pfa_convert.comparison import forward_difference
from pfa_convert.convert import convert, revert
from pfa_convert.errors import one_line
from pfa_convert.files import read_header
from pfa_convert.models import ResolvedModel, build, example
from pfa_convert.recipe import ConvertSection, load_recipe
from pfa_convert.saving import load


@dataclass(frozen=True)
class Conversion:
    """A plain model, its conversion, the name that makes it again, and what there is to say of them."""

    plain: Any
    converted: Any
    name: str
    summary: dict[str, Any]


def convert_by_name(
    resolved: ResolvedModel,
    num_classes: int | None,
    recipe: str | None,
    rule: str | None,
    options: Mapping[str, Any],
    overrides: Sequence[Mapping[str, Any]],
    seed: int,
    strict: bool = False,
    unroll: bool = False,
) -> Conversion:
    """Build the model and convert it; what is given here goes before what the recipe says."""
    section = load_recipe(recipe).convert if recipe else ConvertSection()
    inherited = section.options if rule in (None, section.rule) else {}
    name = resolved.name if resolved.source == "factory" else str(resolved)
    plain = build(name, num_classes)
    started = time.perf_counter()
    converted = convert(
        plain,
        rule or section.rule,
        options={**inherited, **options},
        overrides=[*overrides, *section.overrides],
        seed=seed,
        strict=strict or section.strict,
        unroll=unroll or section.unroll,
    )
    return _checked(plain, converted, name, str(resolved), started)


def read_conversion(path: Path) -> Conversion:
    """Return the plain and the converted model of a file that `--output` wrote."""
    started = time.perf_counter()
    converted, name = load(path), read_header(path)["model"]["name"]
    return _checked(revert(converted), converted, name, name, started)


def _checked(plain: Any, converted: Any, name: str, title: str, started: float) -> Conversion:
    seconds = round(time.perf_counter() - started, 3)
    parameters = sum(parameter.numel() for parameter in plain.parameters())
    summary = {"model": title, "conversion_seconds": seconds, "parameters": parameters}
    return Conversion(plain, converted, name, summary | _compare_forwards(plain, converted, example(name)))


def _compare_forwards(plain: Any, converted: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
    try:
        with torch.no_grad():
            copy.deepcopy(plain).eval()(*inputs)
    except Exception as error:
        reason = f"the plain model does not take a batch of images: {one_line(error, 120)}"
        return {"forward_max_difference": None, "forward_check": reason}
    return {"forward_max_difference": forward_difference(plain, converted, *inputs)}
