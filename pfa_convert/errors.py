"""The one exception for mistakes of the user: what was given, where, and the nearest valid choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend; the command line turns it into one line and exit code 2.

    Args:
        problem: what is wrong, with the value that was given.
        where: the file, key or layer it was found in.
        given: the value to compare with `choices`; the nearest of them are named in the message.
        choices: every valid value.
    """

    def __init__(
        self, problem: str, *, where: str | None = None, given: str | None = None, choices: Iterable[str] = ()
    ) -> None:
        message = f"{where}: {problem}" if where else problem
        names = sorted({str(choice) for choice in choices})
        if names:
            message += f"; {_suggestion(given, names)}"
        super().__init__(one_line(message))


def machine_failure(error: BaseException) -> str | None:
    """Return in one line what the machine did to a run, such as too little memory; None for other errors."""
    text = one_line(error)
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return f"not enough memory: {text}"
    if text.startswith("DataLoader worker"):
        return f"a process that reads the data was killed ({text}); continue with --resume"
    return None


def one_line(said: object, longest: int | None = None) -> str:
    """Return what an error or a text says in one line of at most so many characters.

    Spaces become single ones; the C++ frames that PyTorch adds to some of its messages are left out.

    >>> one_line(ValueError("a\\n  b"))
    'a b'
    """
    return " ".join(str(said).partition("Exception raised from")[0].split())[:longest]


def _suggestion(given: str | None, names: list[str]) -> str:
    near = difflib.get_close_matches(str(given), names, n=3, cutoff=0.5) if given else []
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    if len(names) <= 12:
        return "choose one of " + ", ".join(names)
    return f"choose one of {len(names)}, such as " + ", ".join(names[:6])
