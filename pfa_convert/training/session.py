"""What a run works on: the converted model, the optimizer and all else that changes as it trains."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfa_convert.alignment import gradient_angles
from pfa_convert.convert import strip_feedback
from pfa_convert.data import Data
from pfa_convert.data.base import Shard, Split, batch_starts
from pfa_convert.errors import UserError, one_line
from pfa_convert.feedback.coupling import couple
from pfa_convert.feedback.weight import learning_between_steps
from pfa_convert.recipe import Recipe
from pfa_convert.training.averaging import WeightAverage
from pfa_convert.training.checkpoint import load_training, save_training
from pfa_convert.training.distributed import Processes
from pfa_convert.training.evaluation import Score, evaluate, to_device_format
from pfa_convert.training.forgetting import share_left
from pfa_convert.training.setup import make_model, make_optimizer

EVALUATION_VALUES = 1000 * 3 * 32 * 32
"""A batch is evaluated with about so many input values, but never with fewer images than in training."""


@dataclass
class Progress:
    """How far a run is: epochs completed, batches of the next one with their sums, and the best so far."""

    epoch: int = 0
    batch: int = 0
    sums: list[float] = field(default_factory=list)
    coupled_steps: int = 0
    top1: float | None = None
    best_top1: float = -1.0
    best_epoch: int = 0
    test_top1_at_best: float | None = None
    seconds: float = 0.0

    def complete(self, epoch: int, top1: float, test_top1: float | None, seconds: float) -> bool:
        """Count an epoch as done and return whether it is the best so far."""
        self.epoch, self.batch, self.sums = epoch, 0, []
        self.top1, self.seconds = top1, self.seconds + seconds
        best = top1 > self.best_top1
        if best:
            self.best_top1, self.best_epoch, self.test_top1_at_best = top1, epoch, test_top1
        return best


class Session:
    """The state of a run. `forward` is the model as it is called in training: compiled, in parallel."""

    def __init__(self, recipe: Recipe, seed: int, data: Data, processes: Processes) -> None:
        self.recipe, self.seed, self.data, self.processes = recipe, seed, data, processes
        section = recipe.train
        self.model: Any = make_model(recipe, seed, processes.device)
        _refuse_misfit(recipe, self.model, data, processes)
        self.optimizer = make_optimizer(section.optimizer, self.model)
        stateful = any(site.feedback_elements for site in self.model.conversion.sites)
        self.coupling = (
            couple(self.model, self.optimizer, forgetting=section.forgetting) if stateful else None
        )
        self.phases = bool(learning_between_steps(self.model))
        plain = strip_feedback(self.model)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=section.precision == "fp16")
        learned = {name: p for name, p in self.model.named_parameters() if name in plain}
        self.average = None if section.ema is None else WeightAverage(learned, section.ema)
        self.progress = Progress()
        self.compiled = section.compile and _can_compile(processes.device)
        if self.compiled:
            self.model.compile(fullgraph=True)
        self.forward: Any = processes.parallel(self.model)
        self._buffers = {name: buffer for name, buffer in self.model.named_buffers() if name in plain}

    def start_left(self) -> float | None:
        """Return `s` at the end of the run, by its schedules; None where nothing is to be forgotten so."""
        recipe = self.recipe
        coupled = self.coupling is not None and "collapsed" in self.coupling.strategy.values()
        batches = batch_starts(len(self.data.train), recipe.data.batch_size, self.processes.shard, True)
        steps = math.ceil(len(batches) / recipe.train.gradient_accumulation)
        after = share_left(recipe, steps) if coupled and recipe.train.epochs else None
        return after[-1] if after else None

    def judge(self, split: Split) -> Score:
        """Return the model's score on a split, with averaged weights if the recipe asks for them."""
        per_image = torch.Size(self.data.image_shape).numel()
        batch_size = max(self.recipe.data.batch_size, EVALUATION_VALUES // per_image)
        self.processes.share_buffers(self._buffers)
        with self.average.in_place() if self.average else nullcontext():
            return evaluate(
                self.model, split, batch_size, self.processes.shard, self.recipe.train, self.processes.device
            )

    def gradient_angles(self) -> dict[str, float]:
        """Return the angles between the gradients and backpropagation's, on the first evaluation batch."""
        batches = self.data.evaluation.batches(self.recipe.data.batch_size, Shard())
        images, labels = next(iter(batches))
        self.model.eval()
        angles = gradient_angles(
            self.model, functional.cross_entropy, to_device_format(images, self.recipe.train), labels
        )
        self.model.train()
        return angles

    def save(self, path: Path) -> None:
        """Write everything that the run depends on from here on; only the main process does."""
        self.processes.share_buffers(self._buffers)
        if self.coupling is not None:
            self.progress.coupled_steps = self.coupling.steps
        if self.processes.main:
            averages = self.average.averages if self.average else {}
            save_training(
                path, self.model, self.optimizer, averages, self.scaler.state_dict(), asdict(self.progress)
            )

    def load(self, path: Path) -> None:
        """Go back to the state in a checkpoint; raises UserError if it belongs to another model."""
        loaded = load_training(path, self.model, self.optimizer)
        if self.average is not None:
            self.average.load(loaded.averages)
        if loaded.scaler:
            self.scaler.load_state_dict(loaded.scaler)
        self.progress = Progress(**loaded.progress)
        if self.coupling is not None:
            self.coupling.steps = self.progress.coupled_steps


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Allow only algorithms that give the same bits in every run, for a while."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _can_compile(device: torch.device) -> bool:
    """Return whether `torch.compile` finds what it needs: for a CPU, the C++ compiler that it would call."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return device.type != "cpu" or shutil.which(os.environ.get("CXX", usual)) is not None


@torch.no_grad()
def _refuse_misfit(recipe: Recipe, model: nn.Module, data: Data, processes: Processes) -> None:
    """Raise UserError unless the model takes the data's images and has an output for each class."""
    if recipe.data.batch_size < processes.shard.world:
        raise UserError(f"data.batch_size: fewer images than processes ({processes.shard.world})")
    images = torch.zeros(2, *data.image_shape, device=processes.device)
    size = "x".join(map(str, data.image_shape))
    model.eval()
    try:
        logits = model(images)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = one_line(error, 160)
        raise UserError(f"{recipe.model.name} does not take images of {size}: {reason}") from None
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise UserError(f"{recipe.model.name} does not return logits of the shape (batch, classes)")
    if logits.shape[1] < data.num_classes:
        raise UserError(
            f"{recipe.model.name} has {logits.shape[1]} outputs, the data set {recipe.data.dataset!r} "
            f"{data.num_classes} classes: set model.num_classes"
        )
    model.train()
