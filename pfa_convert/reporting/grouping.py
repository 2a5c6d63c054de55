"""Which runs are of one recipe: by what recipes say, never by what they are called."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pfa_convert.recipe_files import packaged_recipes
from pfa_convert.training.run_folder import ROUNDING, flat

ASIDE = ("name", "experiment", "variant", "expect", "data.root", "data.workers", "train.seeds", *ROUNDING)
"""What two recipes may differ in, and their runs still be of one kind."""


def what_counts(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe's runs depend on, as one mapping of keys such as `train.optimizer.lr`."""
    return {key: value for key, value in flat(recipe).items() if not _below(key, ASIDE)}


def _below(key: str, sections: Iterable[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def place_of(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """Return experiment and variant of a run's recipe: those that it records.

    An earlier version recorded none: then those of the packaged recipe of that name, if there is one.
    """
    name, rule = recipe["name"], recipe.get("convert", {}).get("rule", "pfa")
    if recipe.get("experiment"):
        return recipe["experiment"], recipe.get("variant") or rule
    if name in (packaged := packaged_recipes(name)):
        file, choice = packaged[name]
        return file.path.stem, "-".join(choice.values()) or rule
    return name, rule


def differences(groups: list[dict[str, Any]]) -> list[str]:
    """Return for each of several contents what sets it apart: `epochs=5, lr=0.3`; nothing for one alone."""
    keys = [
        key
        for key in dict.fromkeys(key for content in groups for key in content)
        if len({json.dumps(content.get(key)) for content in groups}) > 1
    ]
    names = {key: _shortest(key, keys) for key in keys}
    return [
        ", ".join(f"{names[key]}={content[key]}" if key in content else f"no {names[key]}" for key in keys)
        for content in groups
    ]


def _shortest(key: str, among: list[str]) -> str:
    """Return the end of a key that no other one has."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        end = ".".join(parts[-length:])
        if not any(other != key and other.endswith(f".{end}") for other in among):
            return end
    return key
