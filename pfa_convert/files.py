"""Files of ours: tensors in safetensors, the rest in its JSON header; written atomically, never pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pfa_convert.atomic import appearing_whole
from pfa_convert.errors import UserError

FORMAT = "pfa-convert 1"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and header; the file appears whole or not at all."""
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "header": json.dumps(header)}
    try:
        with appearing_whole(path) as partial:
            partial.touch()  # with the umask's rights; safetensors writes files for the owner alone
            rights = partial.stat().st_mode
            save_file(copies, partial, metadata=metadata)
            partial.chmod(rights)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(path)) from error
    except SafetensorError as error:
        raise UserError(f"cannot be written: {error}", where=str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text; the file appears whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        with appearing_whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(path)) from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and header of a file of ours; raises UserError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"is not a readable safetensors file: {error}", where=str(path)) from None
    if metadata.get("format") != FORMAT:
        given = metadata.get("format", "none")
        raise UserError(f"has the format {given!r}, this version reads {FORMAT!r}", where=str(path))
    return tensors, json.loads(metadata["header"])


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a file of ours without its tensors."""
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads(file.metadata()["header"])
    return header
