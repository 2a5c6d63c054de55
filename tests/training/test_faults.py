"""What happens to a run when something around it breaks; the table is in docs/reliability.md."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from runs import ENVIRONMENT, TORCHRUN, call, run_in_two_processes, same_bytes, start

from pfa_convert.training.run_folder import RunFolder


def torchrun(*arguments):
    command = [*TORCHRUN, "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "pfa_convert", "train", *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def children(parent, variable=""):
    """The processes below one, those with an environment variable."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            variables = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            above = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if above == parent and (not variable or variable.encode() in variables):
            found.append(int(entry))
    return found


reads_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


RESUMED_AND_WHOLE = """
import sys
from pfa_convert import load_recipe, train

begun, whole, *settings = sys.argv[1:]
recipe = load_recipe("digits-mlp-pfa", settings)
train(recipe, output=begun, device="cpu", resume=True)
train(recipe, output=whole, device="cpu")
"""


@reads_proc
@pytest.mark.xdist_group("two processes")
def test_a_killed_rank_ends_the_job_with_its_number_and_the_run_continues(tmp_path):
    settings = ["train.epochs=8", "data.batch_size=8"]
    folder = RunFolder(tmp_path / "run")
    overrides = [word for setting in settings for word in ("--set", setting)]
    job = torchrun("digits-mlp-pfa", *overrides, "--device", "cpu", "--output", folder.path)
    while len(folder.records()) < 2:
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    os.kill(*children(job.pid, "RANK=1"), signal.SIGKILL)
    said, _ = job.communicate(timeout=90)
    assert job.returncode != 0
    assert "rank      : 1" in said and "Signal 9" in said
    assert not folder.result.exists()

    script = tmp_path / "script.py"
    script.write_text(RESUMED_AND_WHOLE)
    run_in_two_processes(script, folder.path, tmp_path / "whole", *settings)
    assert folder.result.exists()
    assert same_bytes(folder.last, tmp_path / "whole" / "last.safetensors")


@pytest.fixture
def images(tmp_path):
    """A recipe for 160 small images of two classes, read by two processes, and their folder."""
    root = tmp_path / "images"
    for part, count in (("train", 80), ("val", 4)):
        for name in ("cat", "dog"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (20, 20), (index, 90, 200)).save(folder / f"{index:03d}.png")
    recipe = tmp_path / "images.yaml"
    recipe.write_text(
        "model: {name: paper/resnet20, num_classes: 2}\n"
        "data: {dataset: imagefolder, workers: 2, batch_size: 4, options: {image_size: 16, resize: 16}}\n"
        "train: {epochs: 2}\n"
    )
    return [recipe, "--data", root]


@reads_proc
def test_a_killed_reader_of_the_data_ends_the_run_and_it_continues(images, tmp_path):
    folder = RunFolder(tmp_path / "run")
    job = start(*images, "--output", folder.path)
    while not (folder.last.exists() and len(readers := children(job.pid)) >= 2):
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    os.kill(readers[-1], signal.SIGKILL)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 2, said
    # A reader that survives may print, from a thread of multiprocessing's, that the run has gone.
    (said,) = (line for line in said.splitlines() if line.startswith("pfa-convert: "))
    assert "reads the data was killed" in said and "--resume" in said
    resumed = call("train", *images, "--output", folder.path, "--resume")
    assert resumed.code == 0, resumed.errors
    assert call("train", *images, "--output", tmp_path / "whole").code == 0
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
    arguments = ["train", "digits-mlp-pfa", "--set", "train.epochs=4", "--output"]
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * 800_000)
    full = call(*arguments, small_disk / "run")
    assert full.code == 2 and full.errors.startswith("pfa-convert: ") and full.errors.count("\n") == 1
    assert "No space left" in full.errors
    filler.unlink()
    again = call(*arguments, small_disk / "run", "--resume")
    assert again.code == 0, again.errors
    assert call(*arguments, tmp_path / "whole").code == 0
    assert same_bytes(small_disk / "run" / "last.safetensors", tmp_path / "whole" / "last.safetensors")


def test_too_little_memory_is_one_line(tmp_path):
    wide = "model.hidden=[4000000, 4000000]"  # 64 TB of weights
    ended = call("train", "digits-mlp-pfa", "--set", wide, "--output", tmp_path / "run")
    assert ended.code == 2 and ended.errors.count("\n") == 1
    assert ended.errors.startswith("pfa-convert: not enough memory: ")


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    refused = call("train", "digits-mlp-pfa", "--output", tmp_path / "file" / "run")
    assert refused.code == 2 and refused.errors.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


def test_paths_with_spaces_and_other_scripts(tmp_path):
    folder = tmp_path / "läufe und mehr 実験"
    done = call("train", "digits-mlp-pfa", "--set", "train.epochs=1", "--output", folder / "a b")
    assert done.code == 0, done.errors
    link = tmp_path / "link"
    link.symlink_to(folder / "a b")
    again = call("train", "digits-mlp-pfa", "--set", "train.epochs=1", "--output", link, "--resume")
    assert again.code == 0, again.errors
