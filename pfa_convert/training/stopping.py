"""Stopping a run from outside: Ctrl-C or SIGTERM asks for it, the loop saves at the next step and ends."""

from __future__ import annotations

import signal
import threading
from typing import Any

from pfa_convert.errors import UserError

SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Stopped(UserError):
    """The run was asked to stop; what it had done is saved."""


class StopRequest:
    """Set by the first signal while entered; a second Ctrl-C ends the program at once.

    Only the main thread of a program can catch signals.
    """

    def __init__(self) -> None:
        self.by: str | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._catching = threading.current_thread() is threading.main_thread()

    @property
    def made(self) -> bool:
        """Whether the run is asked to stop."""
        return self.by is not None

    def __enter__(self) -> StopRequest:
        if self._catching:
            self._previous = {number: signal.signal(number, self._make) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _make(self, number: int, _frame: Any) -> None:
        if self.by == SIGNALS[signal.SIGINT] and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.by = self.by or SIGNALS[signal.Signals(number)]
