"""The processes of a run: one, or those that `torchrun` started."""

from __future__ import annotations

import atexit
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pfa_convert.data.base import Shard
from pfa_convert.devices import usable_device
from pfa_convert.errors import UserError

# PyTorch 2.14 gave it another name.
_NO_BUFFERS_AT_EACH_STEP: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


@dataclass(frozen=True)
class Processes:
    """This process's place among those of the run, and its device."""

    shard: Shard
    device: torch.device

    @property
    def distributed(self) -> bool:
        """Whether there is more than this process."""
        return self.shard.world > 1

    @property
    def main(self) -> bool:
        """Whether this process writes the run's files and shows its progress."""
        return self.shard.rank == 0

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.distributed:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process through before the others, which then find what it wrote."""
        if not self.main:
            self.wait()
        try:
            yield
        finally:
            if self.main:
                self.wait()

    def by_main(self, act: Callable[[], object]) -> None:
        """Do something in the main process alone; a UserError there is one in every process."""
        failure = None
        if self.main:
            try:
                act()
            except UserError as error:
                failure = error
        if self.any(failure is not None)[0]:
            raise failure or UserError("the main process cannot go on, and says why")

    def any(self, *facts: bool) -> list[bool]:
        """Return for each fact whether it holds in any process."""
        if not self.distributed:
            return list(facts)
        seen = torch.tensor(facts, dtype=torch.int32, device=self.device)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return [bool(fact) for fact in seen.tolist()]

    def parallel(self, model: Any) -> Any:
        """Return the model, wrapped so that gradients are averaged if there are several processes.

        Buffers are not sent along at every step: those of the feedback are the same everywhere, and
        BatchNorm's only matter where the model is evaluated or saved (`share_buffers`).
        """
        if not self.distributed:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            model, device_ids=devices, gradient_as_bucket_view=True, **_NO_BUFFERS_AT_EACH_STEP
        )

    def share_buffers(self, buffers: dict[str, Tensor]) -> None:
        """Give every process the main one's buffers."""
        if self.distributed:
            for buffer in buffers.values():
                dist.broadcast(buffer, 0)


def join(device: str | torch.device | None) -> Processes:
    """Join the processes of `torchrun`, if it started this one.

    The device is a GPU if there is one: the one of this process's local rank. The process group is the one
    that there is, or else a new one, which stays until this process ends: PyTorch cannot make a second one
    of the same processes, and a script may train more than once.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = usable_device(device)
    if world == 1 or "RANK" not in os.environ:
        return Processes(Shard(), chosen)
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(_leave)
    return Processes(Shard(dist.get_rank(), dist.get_world_size()), chosen)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
