"""Learning rate and weight decay as functions of the epochs completed."""

from __future__ import annotations

import math

import torch

from pfa_convert.recipe import ScheduleSection, TrainSection


def set_schedules(section: TrainSection, optimizer: torch.optim.Optimizer, completed: int) -> None:
    """Set learning rate and weight decay for the epoch after so many completed ones."""
    first, epochs = section.optimizer, section.epochs
    for group in optimizer.param_groups:
        group["lr"] = first.lr * factor(section.lr_schedule, completed, epochs)
        group["weight_decay"] = first.weight_decay * factor(section.weight_decay_schedule, completed, epochs)


def factor(schedule: ScheduleSection, epoch: float, epochs: int) -> float:
    """Return what the first value is multiplied by after `epoch` of `epochs` epochs.

    Multistep: `gamma` to the number of milestones passed. Cosine and linear: from 1 down to 0. Before
    that, the value rises linearly over `warmup_epochs`.
    """
    if epoch < schedule.warmup_epochs:
        return (epoch + 1) / (schedule.warmup_epochs + 1)
    if schedule.name == "multistep":
        return float(schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones))
    if schedule.name == "constant":
        return 1.0
    progress = min(1.0, (epoch - schedule.warmup_epochs) / max(1e-9, epochs - schedule.warmup_epochs))
    return 1 - progress if schedule.name == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
