"""Step time and memory of rules and strategies beside backpropagation's, in one process."""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfa_convert.convert import convert
from pfa_convert.feedback.coupling import couple
from pfa_convert.flops import flops_of
from pfa_convert.models import build, resolve
from pfa_convert.rules import RULES
from pfa_convert.training.evaluation import autocast


@dataclass(frozen=True)
class Variant:
    """A rule with a strategy and options; `forgotten` measures it after `K` was dropped."""

    rule: str
    strategy: str | None = None
    forgotten: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """Return the name in tables."""
        options = (f"{key}={value}" for key, value in self.options)
        return " ".join(
            filter(None, [self.rule, self.strategy, *options, "without K" if self.forgotten else ""])
        )


BACKPROPAGATION = Variant("bp")


@dataclass(frozen=True)
class Settings:
    """What is measured: a model on batches of random images of one size.

    `width` goes to the model's constructor, where it takes one.
    """

    model: str
    batch_size: int = 32
    image_size: int | None = None
    width: int | None = None
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = False
    steps: int = 10
    warmup: int = 3


@dataclass(frozen=True)
class Measurement:
    """One variant's cost; ratios are over backpropagation's, step by step in the same run.

    `milliseconds` is the median step, `ratio_low` and `ratio_high` the quartiles of the ratio;
    `memory_ratio` compares the peak memory of a step, `flop_ratio` the arithmetic: the floor of `ratio`.
    """

    variant: str
    milliseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    megabytes: float
    memory_ratio: float
    flop_ratio: float


def bench_variants(
    rules: Sequence[str], strategies: Sequence[str], options: Mapping[str, Any] | None = None
) -> list[Variant]:
    """Return each rule with each of the strategies that it has; a collapsed one also without `K`.

    A rule that has some of `options` is measured with them too.
    """
    variants = []
    for name in rules:
        offered = RULES[name].strategies
        chosen = [s for s in strategies if s in offered] if "collapsed" in offered else [None]
        own = tuple((key, value) for key, value in (options or {}).items() if key in RULES[name].model_fields)
        for strategy, given in itertools.product(chosen, dict.fromkeys([(), own])):
            variants.append(Variant(name, strategy, options=given))
            if strategy == "collapsed":
                variants.append(Variant(name, strategy, forgotten=True, options=given))
    return variants


class Candidate:
    """A model with its optimizer, ready to make one training step after another."""

    def __init__(self, settings: Settings, variant: Variant, shape: tuple[int, ...]) -> None:
        self.variant = variant
        self._settings = settings
        self._device = torch.device(settings.device)
        torch.manual_seed(0)
        memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        options = dict(variant.options)
        if variant.strategy not in (None, "collapsed"):
            options["strategy"] = variant.strategy
        size = {} if settings.width is None else {"width": settings.width}
        model = convert(build(settings.model, **size), variant.rule, options=options, inplace=True)
        self.model: nn.Module = model.to(self._device).to(memory_format=memory_format)
        # Weight decay is small: K stays, unless it is to be dropped.
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        if variant.strategy == "collapsed":
            self._handle = couple(self.model, self.optimizer)
            if variant.forgotten:
                self._handle.forget_all()
        self._forward: Any = torch.compile(self.model, fullgraph=True) if settings.compile else self.model
        self._images = torch.randn(shape, device=self._device).contiguous(memory_format=memory_format)
        self._targets = torch.randint(10, (shape[0],), device=self._device)

    def step(self) -> None:
        """Make one whole training step."""
        with autocast(self._settings.precision, self._device):
            output: Tensor = self._forward(self._images)
        functional.cross_entropy(output.float(), self._targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self) -> float:
        """Return how long one step takes."""
        self._wait()
        started = time.perf_counter()
        self.step()
        self._wait()
        return time.perf_counter() - started

    def flops(self) -> int:
        """Return the floating-point operations of one step's matrix products, convolutions and attention."""
        return flops_of(self.step)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def measure(settings: Settings, variants: Sequence[Variant]) -> list[Measurement]:
    """Return each variant's cost, backpropagation first.

    All variants live in one process and make their steps in turn, so that whatever slows the machine
    slows all of them; the ratio is the median over the rounds.
    """
    size = settings.image_size
    channels, *default_size = resolve(settings.model).input_size
    shape = (settings.batch_size, channels, *([size, size] if size else default_size))
    candidates = [Candidate(settings, variant, shape) for variant in (BACKPROPAGATION, *variants)]
    for candidate in candidates:
        for _ in range(settings.warmup):
            candidate.step()
    rounds = [[candidate.seconds() for candidate in candidates] for _ in range(settings.steps)]
    memory = [peak_memory(candidate, torch.device(settings.device)) for candidate in candidates]
    flops = [0 if settings.compile else candidate.flops() for candidate in candidates]
    results = []
    for index, candidate in enumerate(candidates):
        times = [times[index] for times in rounds]
        low, middle, high = statistics.quantiles([times[index] / times[0] for times in rounds], n=4)
        results.append(
            Measurement(
                variant=str(candidate.variant),
                milliseconds=1000 * statistics.median(times),
                ratio=middle,
                ratio_low=low,
                ratio_high=high,
                megabytes=memory[index] / 2**20,
                memory_ratio=memory[index] / memory[0],
                flop_ratio=flops[index] / flops[0] if flops[0] else float("nan"),
            )
        )
    return results


def peak_memory(candidate: Candidate, device: torch.device) -> float:
    """Return the bytes that the model holds, its optimizer's state included, plus a step's own peak."""
    gc.collect()
    held = _held(candidate)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        candidate.step()
        return held + torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silence(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        candidate.step()
    return held + _peak_of(profile)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what the profiler's own code writes to the standard error away from the user."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _held(candidate: Candidate) -> int:
    tensors = [*candidate.model.parameters(), *candidate.model.buffers()]
    tensors += [
        t for state in candidate.optimizer.state.values() for t in state.values() if torch.is_tensor(t)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak_of(profile: Any) -> int:
    """Return the peak of the allocator's running total during a profile."""
    total = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak
