"""From a recipe to what the loop needs: the converted model, the data, the optimizer."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfa_convert.convert import convert
from pfa_convert.data import Data, load_data
from pfa_convert.data.base import Shard
from pfa_convert.errors import UserError, one_line
from pfa_convert.models import build
from pfa_convert.recipe import DataSection, OptimizerSection, Recipe
from pfa_convert.recipe_check import optimizer_of
from pfa_convert.training.distributed import Processes


def make_model(recipe: Recipe, seed: int, device: torch.device) -> Any:
    """Return the recipe's converted model on the device; `seed` decides its weights and feedback weights."""
    torch.manual_seed(seed)
    section = recipe.model
    plain = build(section.name, section.num_classes, **section.options)
    model = convert(
        plain,
        recipe.convert.rule,
        options=recipe.convert.options,
        overrides=recipe.convert.overrides,
        seed=seed if recipe.convert.seed is None else recipe.convert.seed,
        inplace=True,
        reinit=recipe.init,
        unroll=recipe.convert.unroll,
        strict=recipe.convert.strict,
    )
    memory_format = torch.channels_last if recipe.train.channels_last else torch.preserve_format
    return model.to(device).to(memory_format=memory_format)


def make_data(section: DataSection, root: str | Path | None, device: torch.device) -> Data:
    """Return the data set for training on the device; `root` replaces the section's."""
    return load_data(
        section.dataset,
        Path(root or section.root),
        validation=section.validation,
        device=device,
        workers=section.workers,
        options=section.options,
    )


def first_batch(recipe: Recipe, data_root: Path | None = None) -> tuple[Tensor, Tensor]:
    """Return the first batch of the images that a run of the recipe is evaluated on, with their labels."""
    section = recipe.data.model_copy(update={"workers": 0})
    data = make_data(section, data_root, torch.device("cpu"))
    return next(iter(data.evaluation.batches(section.batch_size, Shard())))


def make_optimizer(section: OptimizerSection, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of torch.optim with this name.

    Raises:
        UserError: for an unknown name, or an argument that the optimizer does not take.
    """
    made = optimizer_of(section)
    trial = torch.zeros(1, 1, device=next((p.device for p in model.parameters()), None), requires_grad=True)
    trial.grad = torch.zeros_like(trial)
    try:
        made([trial]).step()  # what some arguments break: `capturable` on a CPU, `differentiable`, a huge lr
        return made(model.parameters())
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(one_line(error, 200), where="train.optimizer") from error


@torch.no_grad()
def check_fit(recipe: Recipe, model: nn.Module, data: Data, processes: Processes) -> None:
    """Raise UserError unless the model takes the data's images and has an output for each class."""
    if recipe.data.batch_size < processes.shard.world:
        raise UserError(f"data.batch_size: fewer images than processes ({processes.shard.world})")
    size = "x".join(map(str, data.image_shape))
    model.eval()
    try:
        logits = model(torch.zeros(2, *data.image_shape, device=processes.device))
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


def can_compile(device: torch.device) -> bool:
    """Return whether `torch.compile` finds what it needs: for a CPU, the C++ compiler that it would call."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return device.type != "cpu" or shutil.which(os.environ.get("CXX", usual)) is not None


def compilation() -> AbstractContextManager[None]:
    """Allow as many compiled forms as the runs of one process need, of which PyTorch counts all together.

    A model is compiled for training, for evaluation, and again once its feedback has forgotten its start.
    """
    limit: AbstractContextManager[None] = torch._dynamo.config.patch(recompile_limit=COMPILED_FORMS)
    return limit


COMPILED_FORMS = 256


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Allow only algorithms that give the same bits in every run, or else those that prove fastest."""
    before, tried = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    deterministic = wanted or before
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = tried
