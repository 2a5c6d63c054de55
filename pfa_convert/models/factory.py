"""Models that a function of the user's makes: `package.module:factory`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfa_convert.errors import UserError
from pfa_convert.models.resolve import DEFAULT_INPUT_SIZE, SOURCES, images

if TYPE_CHECKING:
    from torch import nn


class FactoryModels:
    """Any importable callable that returns a module; the current folder is searched too."""

    priority = None

    def names(self) -> Sequence[str]:
        """Return nothing: the names are the user's."""
        return ()

    def build(self, name: str, num_classes: int | None, **options: Any) -> nn.Module:
        """Import and call the factory; raises UserError if that is not possible."""
        from torch import nn

        module_name, _, attribute = name.partition(":")
        module = _import(module_name, name)
        factory = getattr(module, attribute, None)
        if not callable(factory):
            choices = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
            raise UserError(f"{module_name} has no callable {attribute!r}", given=attribute, choices=choices)
        if num_classes is not None:
            options["num_classes"] = num_classes
        model = factory(**options)
        if not isinstance(model, nn.Module):
            raise UserError(f"{name} returned a {type(model).__name__}, not a torch.nn.Module")
        return model

    def input_size(self, name: str) -> tuple[int, ...]:
        """Return the usual image size."""
        return DEFAULT_INPUT_SIZE

    def example(self, name: str, size: int | None) -> tuple[Any, ...]:
        """Return a batch of images."""
        return (images(self.input_size(name), size),)


def _import(module_name: str, name: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot import {module_name!r}: {error}", where=f"model {name}") from error
    finally:
        sys.path.remove(here)


SOURCES.register("factory")(FactoryModels())
