"""Whatever takes long shows a sign of life in a terminal, and nothing where a program reads the output."""

import io
import json
import time

import pytest
from click.testing import CliRunner
from rich.console import Console

import pfa_convert.bench
import pfa_convert.commands.bench
from pfa_convert.cli import cli
from pfa_convert.reporting import progress
from pfa_convert.reporting.progress import busy


@pytest.mark.parametrize(
    ("terminal", "patience", "shown"), [(True, 0.0, True), (True, 60.0, False), (False, 0.0, False)]
)
def test_it_is_shown_in_a_terminal_once_patience_ends(monkeypatch, terminal, patience, shown):
    monkeypatch.setattr(progress, "PATIENCE", patience)
    written = io.StringIO()
    with busy(Console(file=written, force_terminal=terminal), "drawing B"):
        time.sleep(0.3)
    assert ("drawing B" in written.getvalue()) is shown
    if shown:
        assert written.getvalue().endswith("\x1b[2K")  # the line that it was on is erased


def test_bench_says_which_size_it_measures_beside_its_json(monkeypatch):
    measure, written = pfa_convert.bench.measure, io.StringIO()
    terminal = Console(file=written, force_terminal=True, width=200)

    def slow_measure(*arguments):
        time.sleep(0.3)
        return measure(*arguments)

    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(pfa_convert.bench, "measure", slow_measure)
    monkeypatch.setattr(pfa_convert.commands.bench, "Console", lambda stderr: terminal)
    command = [
        "bench",
        "paper/mlp",
        "--rules",
        "fa",
        "--batch-size",
        "8",
        "--scale",
        "--steps",
        "2",
        "--json",
    ]
    done = CliRunner().invoke(cli, command)
    assert json.loads(done.stdout).keys() == {"2", "4", "8"}
    for size in (2, 4, 8):
        assert f"measuring paper/mlp, batches of {size}: bp, fa" in written.getvalue()
