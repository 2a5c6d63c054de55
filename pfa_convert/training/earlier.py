"""Runs that an earlier version of the package began: what their recipes mean, and which can go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pfa_convert.errors import UserError

FORMAT = 2
"""Of a run's folder. 1: an option `law` that is not given is `uniform`. 0: the environment tells no version
of the package; in training, the images come in another order, and others are held out for validation."""


def format_of(environment: Mapping[str, Any]) -> int:
    """Return the format of the folder that this `environment.json` is in."""
    return int(environment.get("format", 1 if "pfa_convert" in environment else 0))


def as_of_now(recipe: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's recipe as the present version says what the run does."""
    section = recipe.get("convert")
    if format_of(environment) >= 2 or not isinstance(section, Mapping):
        return dict(recipe)
    rule, overrides = section.get("rule", "pfa"), section.get("overrides") or []
    changed = [_with_law(override, override.get("rule")) for override in overrides]
    return {**recipe, "convert": {**_with_law(section, rule), "overrides": changed}}


def _with_law(section: Mapping[str, Any], rule: str | None) -> Mapping[str, Any]:
    """Return a section with the law that `B` and `R` were drawn from; as it is if it names no such rule."""
    if rule not in ("pfa", "pfa-o"):
        return section
    return {**section, "options": {"law": "uniform", **(section.get("options") or {})}}


def refuse_other_images(recipe: Mapping[str, Any], environment: Mapping[str, Any], where: str) -> None:
    """Raise UserError for a run that would go on with images that it was to be evaluated on."""
    if format_of(environment) == 0 and recipe["data"]["validation"]:
        raise UserError(
            "was begun by an earlier version of pfa-convert, which held out other images for validation: end "
            "it with that version, or begin it anew with --overwrite",
            where=where,
        )


def notice(environment: Mapping[str, Any]) -> str | None:
    """Return what there is to say of a run that goes on, in a line."""
    if format_of(environment) > 0:
        return None
    return (
        "the run was begun by an earlier version of pfa-convert, with the images in another order: it does "
        "not go on bit for bit"
    )
