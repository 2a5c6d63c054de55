"""The names of a library's models without importing it, which takes seconds: kept per installed version."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from pfa_convert.atomic import appearing_whole


def cached_names(library: str, list_names: Callable[[], Sequence[str]]) -> Sequence[str]:
    """Return the names that `list_names` gives, from the user's cache where that is possible.

    A library that is imported already is always asked itself: a script may have added models to it. A
    cache that is missing, damaged or cannot be written costs time and nothing else.
    """
    if library in sys.modules:
        return list_names()
    file = cache_folder() / f"{library}-{version(library)}.json"
    with suppress(OSError, ValueError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(kept, list) and kept and all(isinstance(name, str) for name in kept):
            return kept
    names = list_names()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with appearing_whole(file) as partial:
            partial.write_text(json.dumps(list(names)), encoding="utf-8")
    return names


def cache_folder() -> Path:
    """Return this package's folder in the user's cache, as the XDG specification has it."""
    with suppress(RuntimeError):  # there may be no home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pfa-convert"
    return Path("/nonexistent")
