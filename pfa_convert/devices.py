"""Where to compute: a device by name, checked before anything else is done."""

from __future__ import annotations

import torch

from pfa_convert.errors import UserError


def usable_device(name: str | torch.device | None) -> torch.device:
    """Return the device of this name; by default a GPU if there is one.

    Raises:
        UserError: for a name that is none, or a device that this machine does not have.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "meta":
        raise UserError(f"unknown device {str(name)!r}: cpu, cuda, cuda:1, mps, xpu ...", where="--device")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"this machine cannot use {str(name)!r}: {reason}", where="--device") from None
    return device
