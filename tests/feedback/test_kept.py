"""`F` kept for the batches of gradient accumulation: the same gradients, computed once, and no stale one."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from harness import feedback_of, relative_error
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from pfa_convert import UserError, convert, couple, load_recipe, train
from pfa_convert.feedback.coupling import Coupling


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Flatten(),
        nn.Linear(128, 24),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Linear(24, 5)),
    ).double()


def coupled(rule="pfa", compiled=False, **options):
    model = convert(net(), rule, options=options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    handle = couple(model, optimizer, forgetting=5)
    if compiled:
        torch._dynamo.reset()  # its limit counts what other tests compiled
        model.compile(fullgraph=True)
    return model, optimizer, handle


def held(model):
    return [module for module in model.modules() if getattr(module, "kept", None) is not None]


def images(generator):
    return torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)


def trained(keep, accumulation=3, steps=6, **options):
    """The weights after some steps of several batches each."""
    model, optimizer, handle = coupled(**options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        with handle.kept() if keep else nullcontext():
            for _ in range(accumulation):
                model(images(generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"expansion": 1},
        {"block_size": 4},
        {"feedback_density": 0.5},
        {"rule": "pfa-o"},
        {"rule": "kp", "feedback_density": 0.5},
        {"rule": "fa"},
        {"compiled": True},
    ],
    ids=str,
)
def test_the_weights_are_those_of_F_computed_in_each_pass(options):
    assert relative_error(trained(True, **options), trained(False, **options)) < 1e-12


def multiplications(model, passes, keeping):
    with FlopCounterMode(display=False) as counter, keeping:
        for _ in range(passes):
            model(images(torch.Generator().manual_seed(1)).requires_grad_()).sum().backward()
    return counter.get_total_flops()


def test_the_product_of_weights_is_computed_once():
    model, _, handle = coupled(feedback_density=0.5)  # F is two products, whatever the batch
    plain = multiplications(convert(net(), "bp"), 4, nullcontext())
    each, once = (multiplications(model, 4, keeping) - plain for keeping in (nullcontext(), handle.kept()))
    assert each == 4 * once > 0


@pytest.mark.parametrize("rule", ["kp", "pfa-o"])
def test_nothing_is_held_where_F_takes_no_product(rule):
    model, _, handle = coupled(rule)
    with handle.kept():
        assert not held(model)


def add_in_place(model, optimizer):
    with torch.no_grad():
        model[4].weight.add_(1)


def load(model, optimizer):
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})


def swap_averages(model, optimizer):
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=lambda a, new, n: torch._foreach_add_(a, 1)
    )
    average.update_parameters(model)
    average.update_parameters(model)
    with torch.no_grad():
        for parameter, averaged in zip(model.parameters(), average.module.parameters(), strict=True):
            parameter.copy_(averaged)


def step(model, optimizer):
    model(images(torch.Generator())).sum().backward()
    optimizer.step()


CHANGES = [add_in_place, load, swap_averages]


@pytest.mark.parametrize("change", CHANGES)
def test_a_weight_that_changes_while_F_is_kept_is_an_error(change):
    model, optimizer, handle = coupled()
    with pytest.raises(UserError, match="changed while"), handle.kept():
        change(model, optimizer)
    assert not held(model)


@pytest.mark.parametrize("fused", [True, False])  # PyTorch does not count the changes of a fused step
@pytest.mark.parametrize("nested", [True, False])
def test_a_step_while_F_is_kept_is_refused_before_it_is_made(fused, nested):
    model = convert(net(), "pfa")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1.0, fused=fused)
    handle = couple(model, optimizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match="a step while"), handle.kept():
        with handle.kept() if nested else nullcontext():
            assert held(model)
        assert held(model)
        step(model, optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    step(model, optimizer)
    assert feedback_of(model[4]).forgetting[0] == pytest.approx(0.9)


def test_a_removed_handle_keeps_nothing():
    _, _, handle = coupled()
    handle.remove()
    with pytest.raises(UserError, match="removed"), handle.kept():
        pass


def test_a_copy_made_while_F_is_kept_learns_as_the_original():
    model, _, handle = coupled()
    with handle.kept():
        inside = copy.deepcopy(model)
    assert not held(inside) and not held(model)
    for one in (inside, model):
        one.zero_grad()
        one(images(torch.Generator().manual_seed(2))).sum().backward()
    again = couple(inside, torch.optim.SGD(inside.parameters(), lr=0.1, weight_decay=0.1))
    assert set(again.strategy.values()) == {"collapsed"}
    for p, q in zip(inside.parameters(), model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_feedback_that_is_loaded_while_F_is_kept_counts_at_once():
    model, _, handle = coupled()
    other = {name: 2 * tensor for name, tensor in model.state_dict().items() if "feedback_of" in name}
    with handle.kept():
        model.load_state_dict(other, strict=False)
        within = feedback_of(model[4]).feedback_weight(model[4].weight)
    assert torch.equal(within, feedback_of(model[4]).feedback_weight(model[4].weight))


def test_what_is_dropped_while_F_is_kept_is_not_in_it():
    model, _, handle = coupled()
    with handle.kept():
        handle.forget_all()
        within = feedback_of(model[4]).feedback_weight(model[4].weight)
    G = feedback_of(model[4]).G[0]
    assert relative_error(within, G @ model[4].weight) < 1e-12


def write_data(model, optimizer):
    for parameter in model.parameters():
        parameter.data.mul_(3)


@pytest.mark.parametrize("change", [*CHANGES, step, write_data])
def test_otherwise_F_follows_every_change(change):
    model, optimizer, _ = coupled()
    model(images(torch.Generator())).sum().backward()
    change(model, optimizer)
    fresh, _, _ = coupled()
    fresh.load_state_dict(model.state_dict())
    gradients = []
    for one in (model, fresh):
        one.zero_grad()
        one(images(torch.Generator().manual_seed(2))).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in one.parameters()]))
    assert torch.equal(*gradients)


def test_what_is_saved_while_F_is_kept_is_the_state():
    model, _, handle = coupled()
    before = model.state_dict()
    with handle.kept():
        within = model.state_dict()
    assert within.keys() == before.keys()
    assert all(torch.equal(within[name], before[name]) for name in before)
    assert feedback_of(model[4]).forgetting[0] == 1


def test_training_keeps_F_for_the_batches_of_a_group(tmp_path, monkeypatch):
    begun, genuine = [], Coupling.kept
    monkeypatch.setattr(Coupling, "kept", lambda coupling: begun.append(coupling) or genuine(coupling))
    settings = ["train.epochs=1", "data.validation=101"]
    groups = []
    for accumulation in (1, 3):
        begun.clear()
        recipe = load_recipe("digits-mlp-pfa", [*settings, f"train.gradient_accumulation={accumulation}"])
        train(recipe, output=tmp_path / str(accumulation))
        groups.append(len(begun))
    batches = math.ceil((1797 - 360 - 101) / recipe.data.batch_size)
    assert groups == [0, math.ceil(batches / 3)]
