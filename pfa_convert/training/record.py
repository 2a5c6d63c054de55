"""What a run writes of itself: a line of its log for each epoch, and its result."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class EpochRecord:
    """A line of `log.jsonl`: its keys are these fields, in this order, without those that are None.

    Losses are means in nats, accuracies are in percent, angles in degrees.
    """

    epoch: int
    """From 1 on; the line of epoch 0 is written before training, and tells of the alignment alone."""
    train_loss: float | None = None
    train_top1: float | None = None
    validation_loss: float | None = None
    validation_top1: float | None = None
    validation_top5: float | None = None
    test_loss: float | None = None
    """Beside a validation set, only in the epochs that are the best so far on it."""
    test_top1: float | None = None
    test_top5: float | None = None
    angle_deg: float | None = None
    """The mean over the sites, as is `norm_ratio`; None where no rule sends the error along the layers."""
    norm_ratio: float | None = None
    lr: float | None = None
    weight_decay: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    alignment: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """`{site: {"angle_deg", "norm_ratio"}}`."""
    gradient_angle_deg: Mapping[str, float] | None = None
    """By site, the angle to backpropagation's gradient, where the recipe asks for it."""

    @property
    def top1(self) -> float:
        """The accuracy on the images that the run is evaluated on; nan before training."""
        found = self.test_top1 if self.validation_top1 is None else self.validation_top1
        return math.nan if found is None else found

    def to_json(self) -> str:
        """Return the line, without its end."""
        return json.dumps({key: value for key, value in _content(self).items() if value is not None})

    @classmethod
    def from_json(cls, line: str) -> EpochRecord:
        """Read a line; keys that a later version may have added are passed over."""
        return cls(**_known(cls, line))


def means(alignment: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the means over the sites where they are defined, as fields of EpochRecord."""
    keys = ("angle_deg", "norm_ratio") if alignment else ()
    by_key = {key: [site[key] for site in alignment.values() if not math.isnan(site[key])] for key in keys}
    return {key: fmean(values) for key, values in by_key.items() if values}


@dataclass(frozen=True)
class RunResult:
    """What a run ended with: accuracies in percent, angles in degrees, by site at the end."""

    name: str
    seed: int
    epochs: int
    evaluated_on: str
    final_top1: float
    best_top1: float
    best_epoch: int
    test_top1_at_best: float | None
    angle_deg: dict[str, float]
    norm_ratio: dict[str, float]
    seconds: float
    folder: str
    start_left: dict[str, float] = field(default_factory=dict)
    """By site, the share of a plastic `F` that is what it began with."""

    def to_json(self) -> str:
        """Return the content of `result.json`."""
        return json.dumps(_content(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> RunResult:
        """Read a result; keys that a later version may have added are passed over."""
        return cls(**_known(cls, text))


def _content(record: EpochRecord | RunResult) -> dict[str, Any]:
    return {key: _as_json(value) for key, value in vars(record).items()}


def _known(kind: type[EpochRecord | RunResult], text: str) -> dict[str, Any]:
    """Return what a JSON text gives for the fields of `kind`."""
    names = {field.name for field in fields(kind)}
    return {key: _from_json(value) for key, value in json.loads(text).items() if key in names}


def _as_json(value: Any) -> Any:
    """Return a value with None for each number that JSON does not have: nan and infinity."""
    if isinstance(value, Mapping):
        return {site: _as_json(inner) for site, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    """Return a value with nan for each None by site, which stood for a number that is not defined."""
    if not isinstance(value, Mapping):
        return value
    return {site: math.nan if inner is None else _from_json(inner) for site, inner in value.items()}
