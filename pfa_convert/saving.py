"""A converted model as one file, and the model from the file: `save` and `load`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pfa_convert.alignment import report_of
from pfa_convert.convert import convert
from pfa_convert.errors import UserError, one_line
from pfa_convert.files import load_tensors, save_tensors
from pfa_convert.models import build


def save(converted: nn.Module, path: str | Path, model: str, **options: Any) -> None:
    """Write a converted model with its name and its conversion in the header.

    Args:
        converted: a model that `convert` returned.
        path: the file, conventionally `*.safetensors`.
        model: the name that `pfa_convert.models.build` makes the plain model from.
        options: the further arguments of `build`, such as `num_classes`.

    Raises:
        UserError: if the model is not a converted one, or the file cannot be written.
    """
    header = {"model": {"name": model, **options}, "convert": report_of(converted).settings}
    save_tensors(Path(path), converted.state_dict(), header)


def load(path: str | Path) -> Any:
    """Return the converted model that a file of `save` describes; nothing is unpickled.

    Raises:
        UserError: for a file that is damaged, of another format, or not of the model that it names.
    """
    tensors, header = load_tensors(Path(path))
    if not isinstance(header.get("model"), Mapping) or not isinstance(header.get("convert"), Mapping):
        raise UserError("names no model and no conversion in its header", where=str(path))
    converted = convert(build(**header["model"]), inplace=True, **header["convert"])
    try:
        converted.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"does not fit the model it names: {one_line(error, 200)}", where=str(path)) from None
    return converted
