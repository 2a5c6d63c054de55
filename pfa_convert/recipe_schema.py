"""The JSON schema of recipe files, for editors and the reference page; a run of it writes the file."""

from __future__ import annotations

import json
from typing import Any

from pfa_convert.data import DATASETS
from pfa_convert.recipe import Recipe
from pfa_convert.recipe_check import optimizers
from pfa_convert.recipe_files import schema_file
from pfa_convert.rule_facts import rule_facts

FOREIGN = {"type": "string", "pattern": r"^[\w.]+:\w+$", "description": "package.module:name"}


def recipe_schema() -> dict[str, Any]:
    """Return the schema of what a file may hold: a recipe, or a part of one that extends another."""
    schema = Recipe.model_json_schema()
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A recipe of pfa-convert"}
    schema.pop("required", None)  # a file that extends another may leave out anything
    schema["properties"] |= {
        "extends": {"type": "string", "description": "the file or packaged recipe that this is laid over"},
        "variants": {
            "type": "object",
            "description": "named axes of named changes: variants: {rule: {fa: {convert: {rule: fa}}}}",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": {"type": ["object", "null"]},
            },
        },
    }
    sections = schema["$defs"]
    for section in sections.values():
        section.pop("required", None)
    _restrict(sections["ConvertSection"], "rule", rule_facts())
    _restrict(sections["DataSection"], "dataset", DATASETS)
    _restrict(sections["OptimizerSection"], "name", optimizers(), foreign=False)
    overrides = sections["ConvertSection"]["properties"]["overrides"]
    listed = {key: overrides.pop(key) for key in ("items", "type")}
    overrides["anyOf"] = [listed, {"type": "object"}]
    return schema


def _restrict(section: dict[str, Any], key: str, names: Any, foreign: bool = True) -> None:
    """Let an editor offer the names that a key can have."""
    known = {"enum": sorted(names)}
    section["properties"][key].pop("type")
    section["properties"][key]["anyOf"] = [known, FOREIGN] if foreign else [known, {"type": "string"}]


if __name__ == "__main__":
    schema_file().write_text(json.dumps(recipe_schema(), indent=1) + "\n", encoding="utf-8")
