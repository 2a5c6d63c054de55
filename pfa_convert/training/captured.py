"""The training step recorded as a CUDA graph and replayed: where kernels are shorter than their launch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pfa_convert.errors import UserError
from pfa_convert.feedback.finding import feedback_weights
from pfa_convert.training.batch import Batch, train_batch
from pfa_convert.training.session import Session


class CapturedStep:
    """Learns from a batch as `train_batch` does, with the same operations in the same order.

    A graph holds what it was recorded with: the optimizer's settings and the form of the feedback states.
    When one of them changes, a batch is learned from step by step, in which libraries and the optimizer
    allocate what they need, and the next one is recorded anew. A last, incomplete batch is always learned
    from step by step.

    Raises:
        UserError: for a run whose step cannot be recorded.
    """

    def __init__(self, session: Session) -> None:
        section = session.recipe.train
        for given, problem in (
            (section.gradient_accumulation > 1, "train.gradient_accumulation"),
            (section.precision == "fp16", "train.precision: fp16, whose scale is decided on the CPU"),
            (session.phases, "a rule that learns in phases"),
        ):
            if given:
                raise UserError(f"train.cuda_graph does not go with {problem}", where=session.recipe.name)
        self._session = session
        self._feedback = [feedback for _, _, feedback in feedback_weights(session.model)]
        self._stream = torch.cuda.Stream(session.processes.device)
        self._tried: Any = None
        self._recorded: Any = None

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Learn from a batch and return its mean loss and logits, which the next call overwrites."""
        if len(batch.targets) < self._session.recipe.data.batch_size:
            return self._beside(batch)
        now = self._circumstances()
        if now != self._recorded:
            if now != self._tried:
                self._tried = now
                return self._beside(batch)
            self._record(batch)
            self._recorded = now
        self._images.copy_(batch.images)
        self._targets.copy_(batch.targets)
        self._graph.replay()
        if self._session.coupling is not None:
            self._session.coupling.count_step()
        return self._loss, self._logits

    def _circumstances(self) -> tuple[Any, ...]:
        groups = self._session.optimizer.param_groups
        settings = [value for group in groups for key, value in group.items() if key != "params"]
        return settings, [feedback.pathway for feedback in self._feedback]

    def _beside(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Learn from a batch on the stream that is recorded from: autograd remembers streams."""
        present = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            learned = train_batch(self._session, batch)
        present.wait_stream(self._stream)
        return learned

    def _record(self, batch: Batch) -> None:
        """Record what is done with a batch, without doing it."""
        self._images, self._targets = batch.images.clone(), batch.targets.clone()
        still = replace(batch, images=self._images, targets=self._targets)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._loss, self._logits = train_batch(self._session, still)
