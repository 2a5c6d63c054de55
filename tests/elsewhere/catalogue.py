"""Models of other libraries, small and with random weights, that the conversion is proved on.

Each entry is a factory without arguments that returns `(model, args, kwargs)`. The library is imported
inside it, so that listing the entries needs none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

LIBRARIES = (
    "transformers",
    "diffusers",
    "peft",
    "open_clip",
    "segmentation",
    "monai",
    "torchaudio",
    "geometric",
    "spiking",
)
"""The modules `on_<name>.py` beside this file; each registers its entries when it is imported."""

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """A configuration of a library's model; `package` is what must be installed for it."""

    name: str
    package: str
    factory: Callable[[], Case]

    @property
    def installed(self) -> bool:
        """Say whether the entry's library can be imported."""
        return importlib.util.find_spec(self.package) is not None


_ENTRIES: dict[str, Entry] = {}


def add(package: str, name: str, factory: Callable[[], Case]) -> None:
    """Put an entry into the catalogue under `package/name`."""
    entry = Entry(f"{package}/{name}", package, factory)
    if entry.name in _ENTRIES:
        raise ValueError(f"{entry.name} is in the catalogue already")
    _ENTRIES[entry.name] = entry


def entry(package: str, name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Return a decorator that puts a factory into the catalogue under `package/name`."""

    def register(factory: Callable[[], Case]) -> Callable[[], Case]:
        add(package, name, factory)
        return factory

    return register


@cache
def catalogue() -> dict[str, Entry]:
    """Return every entry by name."""
    for library in LIBRARIES:
        importlib.import_module(f"on_{library}")
    return dict(_ENTRIES)
