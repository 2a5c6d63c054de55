"""pfa-convert: product feedback alignment and its relatives for any torchvision or timm model."""

from pfa_convert.alignment import alignment, gradient_angles
from pfa_convert.convert import convert, revert, strip_feedback
from pfa_convert.errors import UserError
from pfa_convert.feedback.coupling import couple
from pfa_convert.feedback.weight import feedback_phase
from pfa_convert.graph.report import ConversionReport
from pfa_convert.inspection import SiteInspection, inspect
from pfa_convert.recipe import load_recipe
from pfa_convert.saving import load, save
from pfa_convert.training import train

__version__ = "0.1.0"
__all__ = [
    "ConversionReport",
    "SiteInspection",
    "UserError",
    "alignment",
    "convert",
    "couple",
    "feedback_phase",
    "gradient_angles",
    "inspect",
    "load",
    "load_recipe",
    "revert",
    "save",
    "strip_feedback",
    "train",
]
