"""The one registry helper: a name for each rule, data set, model source ...; a new entry is a new file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from pfa_convert.errors import UserError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries of one kind by name, filled by the modules of one package as they register themselves.

    Args:
        kind: what an entry is called in messages, such as `rule`.
        package: the package whose modules are imported, all of them, at the first look-up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that files the decorated class or function under `name`."""

        def decorate(entry: Entry) -> Entry:
            self._entries[name] = entry
            return entry

        return decorate

    def __getitem__(self, name: str) -> Entry:
        """Return the entry called `name`; raises UserError with the nearest names otherwise."""
        self._load()
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} {name!r}", given=name, choices=self._entries)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        self._load()
        return iter(sorted(self._entries))

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
