"""Stopping a run from outside: SIGTERM asks for it, the loop saves at the next step and ends."""

from __future__ import annotations

import signal
import threading
from typing import Any

from pfa_convert.errors import UserError


class Stopped(UserError):
    """The run was asked to stop; what it had done is saved."""


class StopRequest:
    """Set by SIGTERM while entered; only the main thread of a program can catch signals."""

    def __init__(self) -> None:
        self.made = False
        self._previous: Any = None
        self._catching = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> StopRequest:
        if self._catching:
            self._previous = signal.signal(signal.SIGTERM, self._make)
        return self

    def __exit__(self, *_: object) -> None:
        if self._catching:
            signal.signal(signal.SIGTERM, self._previous)

    def _make(self, _signal: int, _frame: Any) -> None:
        self.made = True
