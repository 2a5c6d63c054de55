"""What a converted model has that a plain one has not: its report, and checkpoints of wrapped models load."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pfa_convert.errors import UserError
from pfa_convert.feedback.weight import FeedbackWeight
from pfa_convert.graph.present import present_report
from pfa_convert.graph.report import ConversionReport
from pfa_convert.graph.subclass import change_class
from pfa_convert.graph.walk import SCRIPTED

COMPILED, PARALLEL = "_orig_mod", "module"
"""What torch.compile puts into the names of a state, and what DataParallel and DDP put in front of them."""


def make_root(model: nn.Module, report: ConversionReport) -> None:
    """Give a model its report, as `conversion`; `graph.subclass.plain_again` takes it away."""
    change_class(model, with_conversion)
    model.__dict__["_decided"] = report


def with_conversion(base: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass that has its present report, and loads the states of wrapped models."""

    def conversion(self: Any) -> ConversionReport:
        return present_report(self, self.__dict__["_decided"])

    def load_state_dict(self: Any, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return base.load_state_dict(self, unwrapped(self, state_dict), *args, **kwargs)

    members = {"conversion": property(conversion), "load_state_dict": load_state_dict}
    return type(base.__name__, (base,), members)


def unwrapped(model: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state with the model's own names, given that of the compiled or the parallel model."""
    if not any(part in (COMPILED, PARALLEL) for key in state for part in key.split(".")):
        return state
    children = {part for name, _ in model.named_modules() for part in name.split(".")}
    in_front = PARALLEL not in children and all(
        _without_compiled(k).startswith(f"{PARALLEL}.") for k in state
    )

    def own(name: str) -> str:
        name = name if COMPILED in children else _without_compiled(name)
        if not in_front:
            return name
        return _without_compiled(name.removeprefix(PARALLEL).removeprefix("."))

    result: OrderedDict[str, Any] = OrderedDict((own(key), value) for key, value in state.items())
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        result._metadata = {own(key): value for key, value in metadata.items()}  # type: ignore[attr-defined]
    return result


def _without_compiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != COMPILED)


def refuse_converted(model: nn.Module) -> None:
    """Raise UserError if a model or a part of it is converted already, or the model is scripted."""
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(SCRIPTED)
    if isinstance(getattr(model, "conversion", None), ConversionReport):
        raise UserError("the model is converted already; revert it first")
    for name, module in model.named_modules():
        if isinstance(module, FeedbackWeight) or hasattr(type(module), "plain_class"):
            part = name.rpartition(".")[0] if isinstance(module, FeedbackWeight) else name
            raise UserError(
                f"the submodule {part!r} is converted already, by itself or as a part of another model: "
                "revert that first and give its rule by overrides, or convert the other submodules alone"
            )
    if hasattr(model, "conversion"):
        raise UserError("the model has an attribute 'conversion' of its own, where its report would be")
