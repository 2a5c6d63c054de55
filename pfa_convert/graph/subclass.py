"""Classes made for single modules: the user's class with one thing changed; copied, pickled, and undone.

Each change is a function that makes a class from a class, and the arguments of the function. The made class
remembers the changes and `plain_class`, the class of the user, which is all that a pickle needs. The
functions and their arguments must be importable by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import fx, nn

from pfa_convert.feedback.layers import LAYERS, forward_with_feedback
from pfa_convert.graph.graph_module import graph_module_methods

Module = type[nn.Module]
Change = tuple[Callable[..., Module], tuple[Any, ...]]


def change_class(module: nn.Module, make: Callable[..., Module], *arguments: Any) -> None:
    """Give a module the class that `make(its class, *arguments)` returns; `plain_again` undoes it."""
    cls = type(module)
    if _made_by_parametrize(cls):
        # PyTorch takes the class above away when the last parametrization is removed: ours goes below.
        base = changed(cls.__bases__[0], make, *arguments)
        module.__class__ = _on(base, cls, plain_class=vars(cls).get("plain_class", cls))
    else:
        module.__class__ = changed(cls, make, *arguments)


def plain_again(module: nn.Module) -> None:
    """Give a module back the class that it had before all changes."""
    cls: Any = type(module)
    if not hasattr(cls, "plain_class"):
        return
    if _made_by_parametrize(cls) and _own(cls.plain_class) != _own(cls):  # parametrized anew since
        module.__class__ = _on(cls.__bases__[0].plain_class, cls)
    else:
        module.__class__ = cls.plain_class


def with_wrapped_method(base: Module, name: str, wrap: Callable[..., Any]) -> Module:
    """Return a subclass in which one method is `wrap` of what it is."""
    return type(base.__name__, (base,), {name: wrap(getattr(base, name))})


def with_layer_forward(base: Module, kind: Module) -> Module:
    """Return a subclass in which the forward of a kind of layer is the one with feedback weights.

    It stands where `kind` stands among the classes: a forward of the user's own that calls
    `super().forward(...)` stays, and gets that one.
    """
    inner = _layer_class(LAYERS.revision, kind)  # type: ignore[arg-type]
    return type(base.__name__, (inner,) if base is kind else (base, inner), {})


def changed(base: Module, make: Callable[..., Module], *arguments: Any) -> Module:
    """Return the class that a change makes, always the same one while no layer is registered anew."""
    return _changed(LAYERS.revision, base, make, *arguments)  # type: ignore[arg-type]


@cache
def _changed(revision: int, base: Module, make: Callable[..., Module], *arguments: Any) -> Module:
    made = make(base, *arguments)
    plain = getattr(base, "plain_class", base)
    made.__name__ = made.__qualname__ = f"Feedback{plain.__name__}"
    made.__module__ = plain.__module__
    made.__doc__ = f"{plain.__name__} whose error goes back through a feedback weight."
    made.plain_class = plain  # type: ignore[attr-defined]
    made.changes = (*getattr(base, "changes", ()), (make, arguments))  # type: ignore[attr-defined]
    made.__reduce_ex__ = _reduce_by_changes  # type: ignore[method-assign]
    for name, method in (
        graph_module_methods(_change_again).items() if issubclass(plain, fx.GraphModule) else ()
    ):
        setattr(made, name, method)
    return made


def _change_again(module: nn.Module, changes: tuple[Change, ...]) -> None:
    """Make the changes to a class whose methods may be others than when they were made first."""
    for make, arguments in changes:
        module.__class__ = _changed.__wrapped__(0, type(module), make, *arguments)


@cache
def _layer_class(revision: int, kind: Module) -> Module:
    layer = LAYERS.nearest(kind)
    assert layer is not None
    return type(kind.__name__, (kind,), {"forward": forward_with_feedback(layer)})


def _reduce_by_changes(self: Any, protocol: Any) -> tuple[Any, ...]:
    """Describe a module for pickle and copy: as one of its plain class, and the changes to the class."""
    cls: Any = type(self)
    make, arguments, *rest = cls.plain_class.__reduce_ex__(self, protocol)
    plain = tuple(cls.plain_class if argument is cls else argument for argument in arguments)
    return _rebuild, (cls.changes, make, plain), *rest


def _rebuild(changes: tuple[Change, ...], make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    module = make(*arguments)
    cls = type(module)
    for change, change_arguments in changes:
        cls = changed(cls, change, *change_arguments)
    module.__class__ = cls
    return module


def _made_by_parametrize(cls: Any) -> bool:
    """Say whether PyTorch made the class for one module, to hold its computed weights as properties."""
    return cls.__name__.startswith("Parametrized") and "__getstate__" in vars(cls)


def _on(base: Module, parametrized: Module, **members: Any) -> Module:
    """Return the class that parametrize made, above another class."""
    return type(f"Parametrized{base.__name__}", (base,), _own(parametrized) | members)


def _own(cls: Module) -> dict[str, Any]:
    return {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__", "plain_class")}
