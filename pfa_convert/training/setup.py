"""From a recipe to what the loop needs: the converted model, the optimizer, the coupling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfa_convert.convert import convert
from pfa_convert.data import load_data
from pfa_convert.data.base import Shard
from pfa_convert.errors import UserError
from pfa_convert.models import build
from pfa_convert.recipe import OptimizerSection, Recipe
from pfa_convert.recipe_check import optimizer_class


def make_model(recipe: Recipe, seed: int, device: torch.device) -> Any:
    """Return the recipe's converted model on the device; `seed` decides its weights and feedback weights."""
    torch.manual_seed(seed)
    section = recipe.model
    plain = build(section.name, section.num_classes, **section.options)
    feedback_seed = seed if recipe.convert.seed is None else recipe.convert.seed
    model = convert(
        plain,
        recipe.convert.rule,
        options=recipe.convert.options,
        overrides=recipe.convert.overrides,
        seed=feedback_seed,
        inplace=True,
        reinit=recipe.init,
        unroll=recipe.convert.unroll,
        strict=recipe.convert.strict,
    )
    memory_format = torch.channels_last if recipe.train.channels_last else torch.preserve_format
    return model.to(device).to(memory_format=memory_format)


def first_batch(recipe: Recipe, data_root: Path | None = None) -> tuple[Tensor, Tensor]:
    """Return the first batch of the images that a run of the recipe is evaluated on, with their labels."""
    section = recipe.data
    data = load_data(
        section.dataset,
        data_root or Path(section.root),
        validation=section.validation,
        device=torch.device("cpu"),
        workers=0,
        options=section.options,
    )
    return next(iter(data.evaluation.batches(section.batch_size, Shard())))


def make_optimizer(section: OptimizerSection, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of torch.optim with this name.

    Raises:
        UserError: for an unknown name, or an argument that the optimizer does not take.
    """
    where = "train.optimizer"
    chosen = optimizer_class(section)
    try:
        optimizer: torch.optim.Optimizer = chosen(model.parameters(), **section.arguments)
    except (TypeError, ValueError) as error:
        raise UserError(str(error), where=where) from error
    return optimizer
