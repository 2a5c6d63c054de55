"""What a run works on: the converted model, the optimizer and all else that changes as it trains."""

from __future__ import annotations

import math
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from pfa_convert.alignment import gradient_angles
from pfa_convert.convert import strip_feedback
from pfa_convert.data import Data
from pfa_convert.data.base import Shard, Split, batch_starts
from pfa_convert.errors import UserError
from pfa_convert.feedback.coupling import couple
from pfa_convert.feedback.phase import learning_between_steps
from pfa_convert.recipe import Recipe
from pfa_convert.training.averaging import WeightAverage
from pfa_convert.training.distributed import Processes
from pfa_convert.training.evaluation import Score, evaluate, to_device_format
from pfa_convert.training.forgetting import share_left
from pfa_convert.training.record import EpochRecord
from pfa_convert.training.setup import can_compile, check_fit, make_model, make_optimizer

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

    def pause(self, batch: int, sums: list[float], seconds: float) -> None:
        """Stop within an epoch, after so many of its batches and seconds."""
        self.batch, self.sums, self.seconds = batch, sums, self.seconds + seconds

    def complete(self, record: EpochRecord) -> bool:
        """Count an epoch as done and return whether it is the best so far."""
        self.epoch, self.batch, self.sums = record.epoch, 0, []
        self.top1, self.seconds = record.top1, self.seconds + (record.seconds or 0)
        best = record.top1 > self.best_top1
        if best:
            self.best_top1, self.best_epoch = record.top1, record.epoch
            self.test_top1_at_best = None if record.validation_top1 is None else record.test_top1
        return best


class Session:
    """The state of a run.

    `evaluated` is the model as it is called in evaluation, compiled if it is to be; `forward` the same in
    training, where several processes share each batch.
    """

    def __init__(self, recipe: Recipe, seed: int, data: Data, processes: Processes) -> None:
        self.recipe, self.seed, self.data, self.processes = recipe, seed, data, processes
        section = recipe.train
        self.model: Any = make_model(recipe, seed, processes.device)
        check_fit(recipe, self.model, data, processes)
        self.optimizer = make_optimizer(section.optimizer, self.model)
        stateful = any(site.feedback_elements for site in self.model.conversion.sites)
        self.coupling = (
            couple(self.model, self.optimizer, forgetting=section.forgetting) if stateful else None
        )
        self.phases = bool(learning_between_steps(self.model))
        plain = strip_feedback(self.model)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=section.precision == "fp16")
        learned = {name: p for name, p in self.model.named_parameters() if name in plain}
        self.plain = list(learned.values())
        self.average = None if section.ema is None else WeightAverage(learned, section.ema)
        self.progress = Progress()
        self._group = ExitStack()
        self.compiled = section.compile and can_compile(processes.device)
        # Of an nn.Sequential, `compile()` of PyTorch 2.11 compiles the parts and not the whole.
        self.evaluated: Any = torch.compile(self.model, fullgraph=True) if self.compiled else self.model
        on_gpu = processes.device.type == "cuda"
        self.captured = section.cuda_graph and on_gpu and not processes.distributed
        self.forward: Any = processes.parallel(self.evaluated)
        self.buffers = {name: buffer for name, buffer in self.model.named_buffers() if name in plain}

    def begin_group(self) -> None:
        """Compute `F` once for the batches of a group, if it has more than one."""
        if self.coupling is not None and self.recipe.train.gradient_accumulation > 1:
            self._group.enter_context(self.coupling.kept())

    def end_group(self) -> None:
        """Let go of `F`, before the weights move.

        Raises:
            UserError: with several processes, if a parameter has no gradient, which would never be averaged.
        """
        self._group.close()
        if self.processes.distributed:
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad and parameter.grad is None:
                    raise UserError(
                        f"the loss does not depend on {name}, and several processes wait for its gradient: "
                        "freeze it (requires_grad = False), or train in one process"
                    )

    def expected_start_left(self) -> float | None:
        """Return `s` at the end of the run, by its schedules; None where nothing is to be forgotten so."""
        recipe = self.recipe
        coupled = self.coupling is not None and "collapsed" in self.coupling.strategy.values()
        batches = batch_starts(len(self.data.train), recipe.data.batch_size, self.processes.shard, True)
        steps = math.ceil(len(batches) / recipe.train.gradient_accumulation)
        after = share_left(recipe, steps) if coupled and recipe.train.epochs else None
        return after[-1] if after else None

    def score(self, split: Split) -> Score:
        """Return the model's score on a split, with averaged weights if the recipe asks for them."""
        per_image = torch.Size(self.data.image_shape).numel()
        batch_size = max(self.recipe.data.batch_size, EVALUATION_VALUES // per_image)
        self.processes.share_buffers(self.buffers)
        with self.average.in_place() if self.average else nullcontext():
            return evaluate(
                self.evaluated,
                split,
                batch_size,
                self.processes.shard,
                self.recipe.train,
                self.processes.device,
            )

    def gradient_angles(self) -> dict[str, float] | None:
        """Return the angles to backpropagation's gradients on an evaluation batch, if the recipe asks."""
        if not self.recipe.train.gradient_angles:
            return None
        images, labels = next(iter(self.data.evaluation.batches(self.recipe.data.batch_size, Shard())))
        self.model.eval()
        angles = gradient_angles(
            self.model, functional.cross_entropy, to_device_format(images, self.recipe.train), labels
        )
        self.model.train()
        return angles
