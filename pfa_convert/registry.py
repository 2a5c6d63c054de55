"""The one registry helper: rules, data sets and models by name, layers by class; a new entry is a new file.

Entries come from three places: the modules of one package of ours, the installed packages that announce
themselves by an entry point, and the code of the user, which registers before it converts.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from pfa_convert.errors import UserError, one_line
from pfa_convert.importing import imported

Key = TypeVar("Key")
Entry = TypeVar("Entry")


class _Table(Generic[Key, Entry]):
    """Entries of one kind, filled at the first look-up.

    Args:
        kind: what an entry is called in messages, such as `rule`.
        package: the package whose modules are imported, all of them; they register themselves.
        plugins: the group of entry points that name a module to be imported, in any installed package.
    """

    def __init__(self, kind: str, package: str, plugins: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._plugins = plugins
        self._entries: dict[Key, Entry] = {}
        self._sources: dict[Key, str] = {}
        self.revision = 0
        self._loaded = False
        self._lock = threading.RLock()

    def _add(self, key: Key, entry: Entry, definition: object) -> None:
        """File an entry; running its definition, a class or function, once more is no second entry."""
        source = f"{getattr(definition, '__module__', '')}.{getattr(definition, '__qualname__', '')}"
        if not source.startswith(f"{self._package}."):
            self._load()  # so that the names of ours are known to be taken
        if key in self._entries and self._sources[key] != source:
            name = key.__name__ if isinstance(key, type) else repr(key)
            raise UserError(f"{self.kind} {name} is registered already, by {self._sources[key]}")
        self._entries[key], self._sources[key] = entry, source
        self.revision += 1

    def _load(self) -> None:
        with self._lock:
            if self._loaded:
                return
            self._loaded = True  # from here on: what is imported may itself look something up
            try:
                package = importlib.import_module(self._package)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{self._package}.{module.name}")
            except BaseException:
                self._loaded = False
                raise
            self._load_plugins()

    def _load_plugins(self) -> None:
        for plugin in entry_points(group=self._plugins) if self._plugins else ():
            try:
                plugin.load()
            except Exception as error:
                package = f" of {plugin.dist.name}" if plugin.dist else ""
                text = one_line(error)
                warnings.warn(
                    f"the plugin {plugin.name!r}{package} ({plugin.value}) is left out, since it cannot be "
                    f"imported: {type(error).__name__}: {text}",
                    RuntimeWarning,
                    stacklevel=2,
                )


class Registry(_Table[str, Entry]):
    """Entries by name."""

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that files the decorated class or function under `name`.

        Raises:
            UserError: from the decorator, if the name belongs to something else.
        """

        def decorate(entry: Entry) -> Entry:
            self._add(name, entry, entry)
            return entry

        return decorate

    def __getitem__(self, name: str) -> Entry:
        """Return the entry called `name`, or what `package.module:name` names.

        Raises:
            UserError: with the nearest names if there is none.
        """
        if ":" in name:
            entry: Entry = imported(name, self.kind)
            return entry
        self._load()
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} {name!r}", given=name, choices=self._entries)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        self._load()
        return iter(sorted(self._entries))


class ClassRegistry(_Table[type, Entry]):
    """Entries by class; a class without one of its own has that of the nearest class it inherits from."""

    def nearest(self, cls: type) -> Entry | None:
        """Return the entry of the first registered class in the order in which methods are looked up."""
        self._load()
        return next((self._entries[base] for base in cls.__mro__ if base in self._entries), None)

    def __iter__(self) -> Iterator[type]:
        """Iterate over the classes, in the order of their names."""
        self._load()
        return iter(sorted(self._entries, key=lambda cls: (cls.__module__, cls.__qualname__)))
