"""Runs read from their folders, by experiment and variant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from pfa_convert.errors import UserError
from pfa_convert.recipe_text import read_mapping
from pfa_convert.reporting.grouping import differences, place_of, what_counts
from pfa_convert.reporting.results import Run, Variant
from pfa_convert.training.run_folder import RunFolder


def read_runs(paths: Iterable[Path]) -> dict[str, dict[str, Variant]]:
    """Return all runs below the given folders, by experiment and then by label.

    Raises:
        UserError: if a folder holds no run.
    """
    found: list[tuple[RunFolder, Run]] = []
    for path in paths:
        folders = [RunFolder(file.parent) for file in sorted(path.rglob("recipe.yaml"))]
        begun = [folder for folder in folders if folder.log.exists() or folder.result.exists()]
        completed = [(folder, run) for folder in begun if (run := read_run(folder)).records]
        if not completed:
            raise UserError("holds no run that has completed an epoch", where=str(path))
        found += completed
    experiments: dict[str, dict[str, Variant]] = {}
    for variant in _variants(found):
        experiments.setdefault(variant.experiment, {})[variant.label] = variant
    experiments = _with_backpropagation(experiments)
    return {name: _in_order(variants) for name, variants in sorted(experiments.items())}


def read_run(folder: RunFolder) -> Run:
    """Return the run in a folder; raises UserError if a file of it is damaged or lost."""
    if not folder.log.exists():
        raise UserError(f"holds a result without its {folder.log.name}", where=str(folder.path))
    log, environment = tuple(folder.records()), folder.read_environment()
    return Run(folder.read_recipe(), environment["seed"], log, environment)


def _variants(found: Iterable[tuple[RunFolder, Run]]) -> Iterator[Variant]:
    """Yield the runs of each recipe; a seed that was run twice counts once, by its longest run."""
    places: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for folder, run in found:
        place, content = place_of(read_mapping(folder.recipe)), what_counts(run.recipe.to_dict())
        places.setdefault(place, {}).setdefault(json.dumps(content, sort_keys=True), []).append(run)
    for (experiment, variant), groups in places.items():
        apart = differences([json.loads(content) for content in groups])
        for runs, difference in zip(groups.values(), apart, strict=True):
            longest = {run.seed: run for run in sorted(runs, key=lambda run: len(run.records))}
            chosen = tuple(longest[seed] for seed in sorted(longest))
            yield Variant(chosen, experiment, variant, difference, len(runs) - len(chosen))


def _with_backpropagation(experiments: dict[str, dict[str, Variant]]) -> dict[str, dict[str, Variant]]:
    """Give each experiment without `bp` that of another one with the same model, data and epochs.

    One that has nothing but the runs it lent is not an experiment of its own.
    """

    offered = [(name, v["bp"]) for name, v in experiments.items() if "bp" in v]
    lent, found = set(), {}
    for name, variants in experiments.items():
        found[name] = dict(variants)
        if "bp" in variants:
            continue
        for lender, bp in offered:
            if all(task_of(bp) == task_of(variant) for variant in variants.values()):
                found[name]["bp"] = bp
                lent.add(lender)
                break
    return {name: v for name, v in found.items() if name not in lent or set(v) != {"bp"}}


def task_of(variant: Variant) -> tuple[Any, ...]:
    """Return what two variants must share to be compared: model, initial weights, data and epochs."""
    recipe = variant.recipe
    return recipe.model, recipe.init, recipe.data, recipe.train.epochs


def _in_order(variants: dict[str, Variant]) -> dict[str, Variant]:
    """Sort by rule, the one that reached most first, and within a rule by the numbers in the label."""
    best: dict[str, float] = {}
    for variant in variants.values():
        reached = fmean(run.accuracies[-1] for run in variant.runs)
        best[variant.recipe.convert.rule] = max(reached, best.get(variant.recipe.convert.rule, reached))

    def place(label: str) -> tuple[float, str, list[float], str]:
        rule = variants[label].recipe.convert.rule
        return -best[rule], rule, [float(number) for number in re.findall(r"\d+\.?\d*", label)], label

    return {label: variants[label] for label in sorted(variants, key=place)}
