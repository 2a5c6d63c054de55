"""A whole training run, from top to bottom."""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pfa_convert.alignment import alignment
from pfa_convert.data import Data, load_data
from pfa_convert.data.base import Share
from pfa_convert.errors import UserError
from pfa_convert.feedback.coupling import couple
from pfa_convert.recipe import Recipe
from pfa_convert.training.checkpoint import load_training, save_training
from pfa_convert.training.evaluation import Tally, autocast, evaluate, first_nan
from pfa_convert.training.run_folder import RunFolder
from pfa_convert.training.schedules import factor
from pfa_convert.training.setup import make_model, make_optimizer

EVALUATION_BATCH = 1000


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


class Watcher:
    """What is told of a run's progress; the command line draws a bar, a script may do nothing."""

    def start(self, recipe: Recipe, seed: int, steps: int) -> None:
        """Be told that a run with so many steps begins."""

    def step(self, images: int) -> None:
        """Be told that so many images were trained on."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Be told an epoch's record."""


def train(
    recipe: Recipe,
    *,
    data_root: str | Path | None = None,
    output: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    watcher: Watcher | None = None,
) -> RunResult:
    """Run a recipe with one seed and return its result.

    Args:
        recipe: what to run.
        data_root: the folder with the data; the recipe's by default.
        output: the run's folder; `runs/NAME/seed-N` by default.
        seed: decides weights, feedback weights and the order of images; the recipe's first by default.
        resume: continue from the folder's last checkpoint, or return the result of a finished run.
        device: where to train; a GPU if there is one.
        watcher: told of the progress.

    Raises:
        UserError: for a mistake in recipe, data or folder, or when the loss is no longer finite.
    """
    seed = recipe.train.seeds[0] if seed is None else seed
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    watcher = watcher or Watcher()
    folder = RunFolder(Path(output) if output else Path("runs") / recipe.name / f"seed-{seed}")
    resuming = resume and folder.recipe.exists()
    if resuming:
        folder.check_same(recipe, seed)
        if folder.result.exists():
            return RunResult(**json.loads(folder.result.read_text()))
    section = recipe.data
    data = load_data(
        section.dataset,
        Path(data_root or section.root),
        validation=section.validation,
        device=device,
        workers=section.workers,
        options=section.options,
    )
    if recipe.train.deterministic:
        torch.use_deterministic_algorithms(True)

    model = make_model(recipe, seed, device)
    optimizer = make_optimizer(recipe.train.optimizer, model)
    if any(site.feedback_elements for site in model.conversion.sites):
        couple(model, optimizer)
    progress: dict[str, Any] = {
        "epoch": 0,
        "best_top1": -1.0,
        "best_epoch": 0,
        "test_top1_at_best": None,
        "seconds": 0.0,
    }
    if resuming and folder.last.exists():
        progress = load_training(folder.last, model, optimizer)
        folder.truncate(progress["epoch"])
    else:
        folder.start(recipe, seed)
    forward: Any = torch.compile(model, fullgraph=True) if recipe.train.compile else model

    def stop(_signal: int, _frame: Any) -> None:
        raise UserError(f"stopped by a signal after epoch {progress['epoch']}; continue with --resume")

    previous_handler = signal.signal(signal.SIGTERM, stop)
    watcher.start(recipe, seed, (recipe.train.epochs - progress["epoch"]) * len(data.train))
    try:
        for epoch in range(progress["epoch"] + 1, recipe.train.epochs + 1):
            started = time.perf_counter()
            set_schedules(recipe, optimizer, epoch - 1)
            fitted = train_epoch(recipe, forward, optimizer, data, seed, epoch, device, watcher)
            training_seconds = time.perf_counter() - started
            score = evaluate(
                forward, data.evaluation, EVALUATION_BATCH, Share(), recipe.train.precision, device
            )
            angles = alignment(model)
            progress |= {"epoch": epoch, "seconds": progress["seconds"] + time.perf_counter() - started}
            if score.top1 > progress["best_top1"]:
                test = data.test and evaluate(
                    forward, data.test, EVALUATION_BATCH, Share(), recipe.train.precision, device
                )
                progress |= {"best_top1": score.top1, "best_epoch": epoch}
                progress["test_top1_at_best"] = test.top1 if test else None
                save_training(folder.best, model, optimizer, progress)
            record = {
                "epoch": epoch,
                "train_loss": fitted.loss,
                "train_top1": fitted.top1,
                **{f"{data.evaluation_name}_{key}": value for key, value in asdict(score).items()},
                "angle_deg": mean_of(angles, "angle_deg"),
                "norm_ratio": mean_of(angles, "norm_ratio"),
                "lr": optimizer.param_groups[0]["lr"],
                "weight_decay": optimizer.param_groups[0]["weight_decay"],
                "seconds": round(time.perf_counter() - started, 3),
                "images_per_second": round(len(data.train) / training_seconds, 1),
                "alignment": angles,
            }
            folder.append(record)
            save_training(folder.last, model, optimizer, progress)
            watcher.epoch(record)
    finally:
        signal.signal(signal.SIGTERM, previous_handler)

    final = evaluate(forward, data.evaluation, EVALUATION_BATCH, Share(), recipe.train.precision, device)
    angles = alignment(model)
    result = RunResult(
        name=recipe.name,
        seed=seed,
        epochs=recipe.train.epochs,
        evaluated_on=data.evaluation_name,
        final_top1=final.top1,
        best_top1=progress["best_top1"],
        best_epoch=progress["best_epoch"],
        test_top1_at_best=progress["test_top1_at_best"],
        angle_deg={site: value["angle_deg"] for site, value in angles.items()},
        norm_ratio={site: value["norm_ratio"] for site, value in angles.items()},
        seconds=round(progress["seconds"], 2),
        folder=str(folder.path),
    )
    folder.finish(asdict(result))
    return result


def train_epoch(
    recipe: Recipe,
    model: Any,
    optimizer: torch.optim.Optimizer,
    data: Data,
    seed: int,
    epoch: int,
    device: torch.device,
    watcher: Watcher,
) -> Any:
    """Train on every image once, in an order that depends on seed and epoch alone; return the score."""
    section = recipe.train
    scaler = torch.amp.GradScaler(device.type, enabled=section.precision == "fp16")
    tally = Tally(device)
    batches = data.train.batches(recipe.data.batch_size, Share(), order_seed=hash((seed, epoch)) % 2**63)
    for index, (images, targets) in enumerate(batches, start=1):
        if section.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(section.precision, device):
            logits = model(images)
            loss = functional.cross_entropy(logits.float(), targets, label_smoothing=section.label_smoothing)
        scaler.scale(loss / section.gradient_accumulation).backward()
        if index % section.gradient_accumulation == 0:
            if section.clip_norm is not None:
                scaler.unscale_(optimizer)
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(parameters, section.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        tally.add(loss, logits, targets)
        watcher.step(len(targets))
        if index % 100 == 0 and not math.isfinite(loss.item()):
            break
    fitted = tally.score()
    if not math.isfinite(fitted.loss) and isinstance(model, nn.Module):
        where = first_nan(model, images)
        raise UserError(f"epoch {epoch}: the loss is {fitted.loss}; first seen in {where}", where=recipe.name)
    return fitted


def set_schedules(recipe: Recipe, optimizer: torch.optim.Optimizer, completed: int) -> None:
    """Set learning rate and weight decay for the epoch after so many completed ones."""
    section = recipe.train
    for group in optimizer.param_groups:
        group["lr"] = section.optimizer.lr * factor(section.lr_schedule, completed, section.epochs)
        group["weight_decay"] = section.optimizer.weight_decay * factor(
            section.weight_decay_schedule, completed, section.epochs
        )


def mean_of(angles: dict[str, dict[str, float]], key: str) -> float:
    """Return the mean over the sites."""
    return fmean(value[key] for value in angles.values()) if angles else math.nan
