"""pfa-convert: product feedback alignment and its relatives for any torchvision or timm model.

What is public is imported at its first use: a script that only reads a recipe, and the light commands of
the command line, need not wait for PyTorch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pfa_convert.errors import UserError

if TYPE_CHECKING:
    from pfa_convert.alignment import alignment, gradient_angles
    from pfa_convert.audit.account import Account, Entry
    from pfa_convert.audit.observer import Use
    from pfa_convert.audit.verify import uses, verify
    from pfa_convert.convert import convert, revert, strip_feedback
    from pfa_convert.data import DATASETS
    from pfa_convert.feedback.coupling import couple
    from pfa_convert.feedback.decay import register_decay
    from pfa_convert.feedback.layers import LAYERS
    from pfa_convert.feedback.pathway import Pathway
    from pfa_convert.feedback.phase import feedback_phase
    from pfa_convert.graph.report import ConversionReport
    from pfa_convert.inspection import SiteInspection, inspect
    from pfa_convert.models import build
    from pfa_convert.recipe import load_recipe
    from pfa_convert.rules import RULES, Rule
    from pfa_convert.saving import load, save
    from pfa_convert.training import train

__version__ = "0.1.0"
__all__ = [
    "DATASETS",
    "LAYERS",
    "RULES",
    "Account",
    "ConversionReport",
    "Entry",
    "Pathway",
    "Rule",
    "SiteInspection",
    "Use",
    "UserError",
    "alignment",
    "build",
    "convert",
    "couple",
    "feedback_phase",
    "gradient_angles",
    "inspect",
    "load",
    "load_recipe",
    "register_decay",
    "revert",
    "save",
    "strip_feedback",
    "train",
    "uses",
    "verify",
]

_MODULES = {
    "alignment": ("alignment", "gradient_angles"),
    "audit.account": ("Account", "Entry"),
    "audit.observer": ("Use",),
    "audit.verify": ("uses", "verify"),
    "convert": ("convert", "revert", "strip_feedback"),
    "data": ("DATASETS",),
    "feedback.coupling": ("couple",),
    "feedback.decay": ("register_decay",),
    "feedback.layers": ("LAYERS",),
    "feedback.pathway": ("Pathway",),
    "feedback.phase": ("feedback_phase",),
    "graph.report": ("ConversionReport",),
    "inspection": ("SiteInspection", "inspect"),
    "models": ("build",),
    "recipe": ("load_recipe",),
    "rules": ("RULES", "Rule"),
    "saving": ("load", "save"),
    "training": ("train",),
}
"""Where each public name is defined."""

_HOME = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


class _Package(ModuleType):
    """This package, in which `convert` is the function and never the module of the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
