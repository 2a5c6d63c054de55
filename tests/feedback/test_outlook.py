"""What `print(couple(...))` says: the steps until 1 % is left are those that it takes."""

import re

import pytest
import torch
from torch import nn

from pfa_convert import convert, couple

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.03),
    "fast": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_steps_until_one_percent_is_left(name):
    model = convert(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), "pfa", overrides={"2": "fa"})
    optimizer = OPTIMIZERS[name](model.parameters())
    handle = couple(model, optimizer)
    heading, first, second = str(handle).splitlines()
    assert heading.split() == ["weight", "left", "steps", "to", "1", "%", "strategy"]
    weight, left, steps, strategy = first.split(maxsplit=3)
    assert (weight, left) == ("0.weight", "100.0%") and strategy.startswith("collapsed")
    assert re.match(r"2\.weight +fixed", second)
    promised = int(steps.replace(",", ""))
    for step in range(1, promised + 10):  # noqa: B007
        model(torch.randn(3, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if model[0].feedback_of_weight.get_buffer("forgetting")[0] <= 0.01:
            break
    assert abs(step - promised) <= 1  # the rate still creeps a little when it is read
    assert str(handle).splitlines()[1].split()[2] == "0"


def test_without_decay_it_never_comes():
    model = convert(nn.Linear(4, 3), "pfa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = couple(model, optimizer)
    assert str(handle).splitlines()[1].split()[1:3] == ["100.0%", "never"]
