"""Runs in processes of their own, and what they leave behind."""

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from pfa_convert.cli import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def command(*arguments):
    return [sys.executable, "-m", "pfa_convert", "train", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True)


@dataclass(frozen=True)
class Called:
    code: int
    printed: str
    errors: str


def call(*arguments):
    """The command line in this process, which need not import PyTorch again."""
    printed, errors, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["pfa-convert", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            main()
    except SystemExit as ended:
        return Called(ended.code, printed.getvalue(), errors.getvalue())
    finally:
        sys.argv = before


def start(*arguments):
    return subprocess.Popen(
        command(*arguments), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def run_in_two_processes(script, *arguments):
    """Run a script under torchrun, on two processes of one machine; return what the first one prints."""
    finished = subprocess.run(
        [*TORCHRUN, "--standalone", "--local-ranks-filter", "0", str(script), *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def same_bytes(one, other):
    one, other = load_file(one), load_file(other)
    same = (one[k].shape == other[k].shape and torch.equal(one[k], other[k]) for k in one)
    return one.keys() == other.keys() and all(same)
