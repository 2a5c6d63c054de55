"""What a user names as `package.module:name`: a model, a rule, a data set; also in the current folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from pfa_convert.errors import UserError


def imported(name: str, kind: str) -> Any:
    """Return the attribute that `package.module:name` names.

    Args:
        name: the module, a colon and the attribute.
        kind: what it is to be, for messages.

    Raises:
        UserError: if the module cannot be imported, whatever it raises, or has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    where = f"{kind} {name}"
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot import {module_name!r}: {error}", where=where) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{module_name!r} fails as it is imported: {reason}", where=where) from error
    finally:
        sys.path.remove(here)
    found = getattr(module, attribute, None)
    if found is None:
        choices = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UserError(f"{module_name} has no {attribute!r}", where=where, given=attribute, choices=choices)
    return found
