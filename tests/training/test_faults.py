"""What happens to a run when something around it breaks; the table is in docs/reliability.md."""

import os
import signal
import subprocess
import sys
import time

import pytest
from runs import ENVIRONMENT, run, same_bytes

from pfa_convert.training.run_folder import RunFolder

BIG = ["--set", "model.hidden=[256, 256]"]


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "pfa_convert", "train", *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def worker(parent, rank):
    """The process of a rank below torchrun."""
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                variables = file.read().split(b"\0")
            with open(f"/proc/{entry}/stat") as file:
                above = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if above == parent and f"RANK={rank}".encode() in variables:
            return int(entry)
    raise AssertionError("no such process")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_rank_ends_the_job_with_its_number_and_the_run_continues(tmp_path):
    arguments = ["digits-mlp-pfa", *BIG, "--set", "train.epochs=60", "--device", "cpu"]
    folder = RunFolder(tmp_path / "run")
    job = torchrun(*arguments, "--output", folder.path)
    while len(folder.records()) < 2:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    os.kill(worker(job.pid, 1), signal.SIGKILL)
    said, _ = job.communicate(timeout=90)
    assert job.returncode != 0
    assert "rank      : 1" in said and "Signal 9" in said
    assert not folder.result.exists()

    resumed = torchrun(*arguments, "--output", folder.path, "--resume")
    assert resumed.wait(timeout=120) == 0, resumed.communicate()
    whole = torchrun(*arguments, "--output", tmp_path / "whole")
    assert whole.wait(timeout=120) == 0, whole.communicate()
    assert same_bytes(folder.last, tmp_path / "whole" / "last.safetensors")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.4 MB; mounting one is for root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_the_run_clearly_and_loses_nothing(small_disk, tmp_path):
    arguments = ["digits-mlp-pfa", "--set", "train.epochs=4", "--output"]
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * 800_000)
    full = run(*arguments, small_disk / "run")
    assert full.returncode == 2 and full.stderr.startswith("pfa-convert: ") and full.stderr.count("\n") == 1
    assert "No space left" in full.stderr
    filler.unlink()
    again = run(*arguments, small_disk / "run", "--resume")
    assert again.returncode == 0, again.stderr
    assert run(*arguments, tmp_path / "whole").returncode == 0
    assert same_bytes(small_disk / "run" / "last.safetensors", tmp_path / "whole" / "last.safetensors")


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    refused = run("digits-mlp-pfa", "--output", tmp_path / "file" / "run")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


def test_paths_with_spaces_and_other_scripts(tmp_path):
    folder = tmp_path / "läufe und mehr 実験"
    done = run("digits-mlp-pfa", "--set", "train.epochs=1", "--output", folder / "a b")
    assert done.returncode == 0, done.stderr
    link = tmp_path / "link"
    link.symlink_to(folder / "a b")
    assert run("digits-mlp-pfa", "--set", "train.epochs=1", "--output", link, "--resume").returncode == 0
