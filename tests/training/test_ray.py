"""Runs on a local Ray cluster: placed, continued when a worker is lost, and refused in one line."""

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from runs import call, same_bytes

from pfa_convert import train
from pfa_convert.training.ray_runs import reproduce_on_ray
from pfa_convert.training.reproduction import plan
from pfa_convert.training.run_folder import RunFolder

LONGEST = 120
"""Seconds. A test takes 20 at most on a busy machine; one that waits for ever fails here, and says where."""

SETTINGS = ["train.epochs=60", "model.hidden=[64]"]


@pytest.fixture(autouse=True)
def alarm():
    """Let a test that hangs fail, with the place that it waits at."""

    def ring(_signal, frame):
        where = "".join(traceback.format_stack(frame, limit=4))
        pytest.fail(f"no end after {LONGEST} seconds; it waits at\n{where}", pytrace=False)

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def two_workers(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default they wait for whatever else a machine does
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


def workers():
    """The processes that are doing a run."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"ray::run_command" in (entry / "cmdline").read_bytes():
                yield int(entry.name)
        except OSError:
            continue


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_run_whose_worker_is_killed_is_continued_by_another(two_workers, tmp_path):
    runs = plan("digits-mlp-pfa", tmp_path, {}, seeds=[0, 1], settings=SETTINGS)
    killed = []

    def kill_one():
        while not any(len(RunFolder(run.folder).records()) > 3 for run in runs):
            time.sleep(0.02)
        for process in workers():
            os.kill(process, signal.SIGKILL)
            killed.append(process)
            return

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    ended = list(reproduce_on_ray(runs, "local", settings=SETTINGS))
    thread.join(1)
    assert len(killed) == 1
    assert {end.run for end in ended} == set(runs) and not any(end.failure for end in ended)
    for run in runs:
        whole = tmp_path / f"alone-{run.seed}"
        train(run.loaded, output=whole, seed=run.seed)
        assert same_bytes(whole / "last.safetensors", run.folder / "last.safetensors")


def test_what_a_run_says_is_its_failure_and_what_is_finished_is_skipped(two_workers, tmp_path):
    runs = plan("digits-mlp-fa", tmp_path, {}, seeds=[0, 1], settings=["train.epochs=1"])
    (runs[1].folder / "log.jsonl").mkdir(parents=True)
    train(runs[0].loaded, output=runs[0].folder, seed=0)
    before = (runs[0].folder / "result.json").stat().st_mtime_ns
    first, second = reproduce_on_ray(runs, "local", settings=["train.epochs=1"])
    assert first.run == runs[0] and first.failure is None and "cannot write the run" in second.failure
    assert (runs[0].folder / "result.json").stat().st_mtime_ns == before


def test_no_cluster_is_one_line(tmp_path):
    pytest.importorskip("ray")
    arguments = ["reproduce", "digits-mlp-bp", "--output", tmp_path / "runs", "--ray", "127.0.0.1:1"]
    called = call(*arguments)
    assert called.code == 2 and called.errors.count("\n") == 1, called
    assert "--ray: no Ray cluster at '127.0.0.1:1'" in called.errors


def test_gpus_per_run_are_for_ray(tmp_path):
    called = call("reproduce", "digits-mlp-bp", "--output", tmp_path / "runs", "--gpus-per-run", 0.5)
    assert called.code == 2 and "give --ray too" in called.errors
