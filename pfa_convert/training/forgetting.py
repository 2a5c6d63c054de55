"""How much of `R`'s start a recipe leaves: the recursion of `s`, worked out before anything runs."""

from __future__ import annotations

from pfa_convert.recipe import Recipe
from pfa_convert.training.schedules import factor


def share_left(recipe: Recipe, steps: int) -> list[float] | None:
    """Return `s` after each epoch: `F = T(W) + s K`, where `K` is what `F` began with beyond `T(W)`.

    SGD subtracts `lr` times its momentum buffer, of which weight decay is the only part that acts on
    `K`; so `s` depends on the schedules alone. Without momentum, and with little decay, it is

        s = exp(-sum of lr * weight_decay over all steps)

    and with momentum `mu` the sum counts `1 / (1 - mu)` fold. `train.forgetting` divides it by e beside that
    in so many steps.

    Args:
        recipe: its optimizer and schedules count.
        steps: optimizer steps in an epoch.

    Returns:
        One value per epoch, or None for an optimizer other than SGD.
    """
    section = recipe.train
    if section.optimizer.name.lower() != "sgd":
        return None
    given = section.optimizer.arguments
    mu, dampening = float(given.get("momentum", 0)), float(given.get("dampening", 0))
    kept = 1 - 1 / section.forgetting if section.forgetting else 1.0
    s, v, started, after = 1.0, 0.0, False, []
    for epoch in range(section.epochs):
        lr = section.optimizer.lr * factor(section.lr_schedule, epoch, section.epochs)
        decay = section.optimizer.weight_decay * factor(section.weight_decay_schedule, epoch, section.epochs)
        for _ in range(steps):
            v = mu * v + (1 - dampening * started) * decay * s
            started = True
            s -= lr * (decay * s + mu * v if given.get("nesterov") else v)
            s *= kept
        after.append(s)
    return after
