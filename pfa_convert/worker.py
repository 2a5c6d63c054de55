"""What a worker of another engine does for a run: the command that one machine runs, in a process.

It imports nothing heavy, and the process ends with the worker, so that no two of them write one folder.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def run_command(arguments: Sequence[str], transcript: str) -> int:
    """Run `pfa-convert` with these arguments; return its exit code.

    Args:
        arguments: of the command line, with paths that do not depend on the folder.
        transcript: the file that gets what it prints.
    """
    Path(transcript).parent.mkdir(parents=True, exist_ok=True)
    with Path(transcript).open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "pfa_convert", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent if sys.platform.startswith("linux") else None,
        )
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
