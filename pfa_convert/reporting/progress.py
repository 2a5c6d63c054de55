"""A sign of life in the terminal for whatever takes more than two seconds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

PATIENCE = 2.0
"""Seconds after which a terminal shows that something is going on."""


@contextmanager
def busy(console: Console, what: str) -> Iterator[None]:
    """Show a spinner with these words once the block takes long; in a terminal only, and gone at its end."""
    if not console.is_terminal:
        yield
        return
    status = console.status(what)
    timer = threading.Timer(PATIENCE, status.start)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()
