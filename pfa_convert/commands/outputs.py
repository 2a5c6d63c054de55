"""Where a command writes: checked before the work begins."""

from __future__ import annotations

from pathlib import Path

from pfa_convert.errors import UserError


def refuse_unwritable(path: Path | None, option: str, example: str) -> None:
    """Raise UserError if a file cannot be written at this path, since it is a folder or in none."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it, such as {example}", where=option)
    if not path.absolute().parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist", where=option)
