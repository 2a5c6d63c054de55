"""A table's runs on the machines of a Ray cluster: tasks that Ray places, and begins again if they are lost.

All machines see the same files (a shared file system) and have this package installed.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfa_convert.errors import UserError, one_line
from pfa_convert.training.reproduction import FinishedRun, PlannedRun, arguments, failure_text
from pfa_convert.training.run_folder import RunFolder
from pfa_convert.worker import run_command

TRIES = 20
"""So often is a run continued elsewhere when its worker or machine is lost."""

ANSWER = 10.0
"""Seconds in which a cluster's machine must take a connection."""

PATIENCE = 60.0
"""Seconds that runs have to save when they are asked to stop."""


def reproduce_on_ray(
    runs: Sequence[PlannedRun],
    address: str,
    gpus_per_run: float | None = None,
    data_root: Path | None = None,
    settings: Sequence[str] = (),
    device: str | None = None,
) -> Generator[FinishedRun, None, None]:
    """Do what is not finished as tasks of Ray, and yield each run as it ends.

    Ray decides how many run at a time. A run whose worker is lost is continued by another one, from its
    last checkpoint. If the iterator is closed early, the runs are asked to save and end.

    Args:
        runs: the plan.
        address: of the cluster: `auto` on one of its machines, `ray://HOST:10001` from elsewhere, `local`
            to start one on this machine.
        gpus_per_run: the share of a GPU that each run takes; a whole one by default where there are any.
        data_root: the folder with the data, on every machine.
        settings: changes of the recipes, as for the plan.
        device: where each run trains; by default the GPU that Ray gives it, or the CPU.

    Raises:
        UserError: if Ray is not installed, or there is no cluster at this address.
    """
    ray = _connect(address)
    gpus = (1.0 if ray.cluster_resources().get("GPU") else 0.0) if gpus_per_run is None else gpus_per_run
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=TRIES)(run_command)
    return _ended(ray, task, runs, data_root, settings, device)


def _ended(
    ray: Any,
    task: Any,
    runs: Sequence[PlannedRun],
    data_root: Path | None,
    settings: Sequence[str],
    device: str | None,
) -> Generator[FinishedRun, None, None]:
    waiting: dict[Any, PlannedRun] = {}
    try:
        for run in runs:
            if RunFolder(run.folder).is_finished(run.loaded):
                yield FinishedRun(run)
            else:
                waiting[_submit(task, run, data_root, settings, device)] = run
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            run = waiting.pop(done)
            yield FinishedRun(run, _outcome(ray, done, run))
    finally:
        for reference in waiting:
            ray.cancel(reference)
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting), timeout=PATIENCE)
        ray.shutdown()


def _submit(
    task: Any, run: PlannedRun, data_root: Path | None, settings: Sequence[str], device: str | None
) -> Any:
    """Hand a run to Ray, with paths that are the same from wherever it runs."""
    file, colon, variant = run.recipe.rpartition(":")
    recipe = f"{Path(file).absolute()}:{variant}" if colon else run.recipe
    recipe = str(Path(recipe).absolute()) if Path(recipe).is_file() else recipe
    placed = replace(run, recipe=recipe, folder=run.folder.absolute())
    words = arguments(placed, data_root and data_root.absolute(), settings, device)
    return task.remote(words, str(placed.transcript))


def _outcome(ray: Any, reference: Any, run: PlannedRun) -> str | None:
    """Return what a run said last if it ended badly, or why Ray gave it up."""
    try:
        code = ray.get(reference)
    except ray.exceptions.RayError as error:
        return one_line(error)[-300:]
    return failure_text(run, code) if code else None


def _refuse_silence(address: str) -> None:
    """Raise UserError if nothing listens at `HOST:PORT`: Ray would try for minutes before it says so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"no Ray cluster at {address!r}: {reason}", where="--ray") from None


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise UserError(
            "needs Ray: pip install 'ray>=2.40', or '.[ray]' from a checkout", where="--ray"
        ) from None
    if not ray.is_initialized():
        _refuse_silence(address)
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError, SystemExit) as error:  # Ray exits if none answers
            reason = "it does not answer" if isinstance(error, SystemExit) else str(error).partition("\n")[0]
            raise UserError(f"no Ray cluster at {address!r}: {reason}", where="--ray") from None
    return ray
