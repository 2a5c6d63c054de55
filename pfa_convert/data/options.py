"""Data sets by name, with their options: typed, bounded, with defaults, as their loaders' signatures say."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from pfa_convert.data.base import COMMON, DATASETS, Data
from pfa_convert.errors import UserError


def load_data(
    dataset: str,
    root: Path,
    *,
    validation: int,
    device: torch.device,
    workers: int,
    options: Mapping[str, Any],
) -> Data:
    """Return the data set of this name.

    Args:
        dataset: a name in DATASETS.
        root: the folder with the files; nothing is downloaded.
        validation: how many training images to hold out; 0 judges by the test images.
        device: where small sets are kept.
        workers: processes that decode large sets.
        options: the data set's own options.

    Raises:
        UserError: for an unknown name or option, or a folder that is not there.
    """
    try:
        chosen = option_model(dataset).model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        key, where = ".".join(map(str, first["loc"])), f"data set {dataset!r}"
        if first["type"] == "extra_forbidden":
            known = option_model(dataset).model_fields
            raise UserError(f"unknown option {key!r}", where=where, given=key, choices=known) from None
        raise UserError(f"option {key!r}: {first['msg']}", where=where) from None
    common = {"root": root, "validation": validation, "device": device, "workers": workers}
    taken = inspect.signature(DATASETS[dataset]).parameters
    return DATASETS[dataset](**{key: common[key] for key in common if key in taken}, **dict(chosen))


def option_model(dataset: str) -> type[BaseModel]:
    """Return the pydantic model of a data set's options; raises UserError for an unknown data set."""
    loader = DATASETS[dataset]
    hints = get_type_hints(loader, include_extras=True)
    fields: Any = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(loader).parameters.items()
        if name not in COMMON and parameter.kind is parameter.KEYWORD_ONLY
    }
    return create_model(dataset, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)
