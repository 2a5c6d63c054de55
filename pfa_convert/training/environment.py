"""Where and how a run was made: program, versions, machine, data."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pfa_convert.training.earlier import FORMAT

PACKAGE = Path(__file__).resolve().parents[1]


def environment(seed: int, data: Path | None, device: torch.device) -> dict[str, Any]:
    """Return what a reader needs to judge a run's figures, and to repeat it.

    Args:
        seed: the run's.
        data: the folder that was read, if any was.
        device: where the run trains.
    """
    return {
        "format": FORMAT,
        "seed": seed,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "data": None if data is None else str(data),
        "pfa_convert": installed_version("pfa-convert"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": installed_version("torchvision"),
        "timm": installed_version("timm"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def continued(told: Mapping[str, Any], now: Mapping[str, Any], epoch: int) -> dict[str, Any]:
    """Return a run's environment with how it went on after this epoch: when, by what command, what is new."""
    before = {key: value for part in parts(told) for key, value in part.items()}
    always = ("date", "command")
    changed = {key for key in now if before.get(key) != now[key]} - {"format"}  # the folder's own stays
    new = {key: value for key, value in now.items() if key in always or key in changed}
    return {**told, "continued": [*parts(told)[1:], {"after_epoch": epoch, **new}]}


def parts(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the environment that a run was begun in, then what was new each time that it went on.

    Raises:
        TypeError: if a part is none, or its date or command is no text.
    """
    found = [told, *told.get("continued", [])]
    if not all(isinstance(part, Mapping) for part in found):
        raise TypeError("no part of an environment")
    if not all(isinstance(part.get(key) or "", str) for part in found for key in ("date", "command")):
        raise TypeError("a date or a command that is no text")
    return found


def command_line() -> str:
    """Return the command that this process was started with, its program by name alone."""
    program, *arguments = sys.argv
    name = Path(program).name
    return shlex.join(["pfa-convert" if name in ("__main__.py", "cli.py") else name, *arguments])


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout that the package runs from, `+` for changes; None if in none."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, check=True, text=True
        )
        commit = subprocess.run(
            [*git, "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            capture_output=True,
            check=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() if tracked.stdout else None


def _processor() -> str:
    """Return the processor's name, as well as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
