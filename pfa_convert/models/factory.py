"""Models that a function of the user's makes: `package.module:factory`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pfa_convert.errors import UserError
from pfa_convert.importing import imported
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
        """Import the factory and call it, or copy a model that is there already.

        Raises:
            UserError: if that is not possible, whatever the user's code raises.
        """
        from torch import nn

        found = imported(name, "model")
        if num_classes is not None:
            options["num_classes"] = num_classes
        if isinstance(found, nn.Module):
            if options:
                problem = f"is a model already, which takes no {', '.join(options)}"
                raise UserError(problem, where=f"model {name}")
            return copy.deepcopy(found)
        if not callable(found):
            raise UserError(f"{name} is no function that returns a model: {type(found).__name__}")
        try:
            model = found(**options)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"cannot be made: {reason}", where=f"model {name}") from error
        if not isinstance(model, nn.Module):
            raise UserError(f"{name} returned a {type(model).__name__}, not a torch.nn.Module")
        return model

    def input_size(self, name: str) -> tuple[int, ...]:
        """Return the usual image size."""
        return DEFAULT_INPUT_SIZE

    def example(self, name: str, size: int | None) -> tuple[Any, ...]:
        """Return what the module's own `example_inputs()` returns, or a batch of images."""
        imported(name, "model")
        own = getattr(sys.modules[name.partition(":")[0]], "example_inputs", None)
        if own is None:
            return (images(self.input_size(name), size),)
        arguments = own()
        return arguments if isinstance(arguments, tuple) else (arguments,)


SOURCES.register("factory")(FactoryModels())
