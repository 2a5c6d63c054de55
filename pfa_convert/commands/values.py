"""Options of the form KEY=VALUE."""

from __future__ import annotations

import json
from typing import Any

from pfa_convert.errors import UserError


def key_values(texts: tuple[str, ...], option: str) -> dict[str, Any]:
    """Return `{key: value}` of texts `key=value`; values that are numbers or booleans become such."""
    pairs = {}
    for text in texts:
        key, equals, value = text.rpartition("=")
        if not equals or not key:
            raise UserError(f"{text!r} is not of the form KEY=VALUE", where=option)
        try:
            pairs[key] = json.loads(value)
        except json.JSONDecodeError:
            pairs[key] = value
    return pairs
