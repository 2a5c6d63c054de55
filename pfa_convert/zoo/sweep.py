"""A table with one line for each model, made by several processes, with a time limit, resumed at will."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from pfa_convert.errors import one_line


class Line(Protocol):
    """One line of a table: a data class of text and numbers, one for each model."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def model(self) -> str:
        """The model's name."""

    @property
    def status(self) -> str:
        """How it ended; `failed` is the worst."""

    @property
    def reasons(self) -> str:
        """Why it did not end better, divided by semicolons."""


L = TypeVar("L", bound=Line)


def sweep(
    names: Sequence[str], examine: Callable[[str], L | None], kind: type[L], table: Path, jobs: int
) -> Iterator[L | None]:
    """Yield the line of each model, those first that the table has already; the table grows as they come.

    A model that `examine` has no line for is None, and in no table.
    """
    known = {line.model: line for line in read_table(table, kind)}
    yield from (known[name] for name in names if name in known)
    missing = [name for name in names if name not in known]
    if not missing:
        return
    with (
        ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        table.open("a", newline="") as file,
    ):
        writer = csv.DictWriter(file, [field.name for field in fields(kind)], lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        for future in as_completed([pool.submit(examine, name) for name in missing]):
            line = future.result()
            if line is not None:
                writer.writerow(asdict(line))
                file.flush()
            yield line


def read_table(table: Path, kind: type[L]) -> list[L]:
    """Return the lines of a table that `sweep` wrote."""
    if not table.exists():
        return []
    types = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(kind)}
    with table.open(newline="") as file:
        rows = [{key: types[key](value) for key, value in row.items()} for row in csv.DictReader(file)]
    return [kind(**row) for row in rows]


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the block once it has taken so long; for the main thread of a process."""

    def give_up(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def kind_and_text(error: Exception) -> str:
    """Return an error's kind and message on one line."""
    return f"{type(error).__name__}: {one_line(error, 160)}"
