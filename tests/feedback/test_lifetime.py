"""Coupled models over their life: averages, earlier states, half precision, other optimizers."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from harness import feedback_of, relative_error
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pfa_convert import UserError, alignment, convert, couple, gradient_angles
from pfa_convert.feedback.decay import register_decay


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6))


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)


def sgd(model, **more):
    return torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1, **more)


def steps(model, optimizer, count, generator=None, after=lambda: None):
    generator = generator or torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        x = torch.randn(4, 8, generator=generator, dtype=torch.float64).to(model[0].weight.dtype)
        (model(x) - x[:, :6]).square().mean().backward()
        optimizer.step()
        after()


def s_of(model):
    return feedback_of(model[0]).forgetting[0].item()


AVERAGES = {
    "of weights": lambda model: AveragedModel(model),
    "of buffers too": lambda model: AveragedModel(model, use_buffers=True),
    "timm's": lambda model: ModelEmaV3(model, decay=0.98),
}


@pytest.mark.parametrize("average", AVERAGES)
def test_averages_go_on_when_the_start_is_forgotten(average):
    model = convert(mlp(), "pfa")
    optimizer = adamw(model)
    averaged = AVERAGES[average](model)
    couple(model, optimizer, forgetting=5)
    update = averaged.update if average == "timm's" else lambda model: averaged.update_parameters(model)
    steps(model, optimizer, 210, after=lambda: update(model))
    alone = convert(mlp(), "pfa")
    other = adamw(alone)
    couple(alone, other, forgetting=5)
    steps(alone, other, 210)
    assert feedback_of(alone[0]).K.numel() == 0 and feedback_of(model[0]).K.numel() == model[0].weight.numel()
    assert relative_error(model[0].weight, alone[0].weight) < 1e-4


def test_looking_at_gradients_is_no_copy_that_would_average():
    model = convert(mlp(), "pfa")
    gradient_angles(model, nn.functional.mse_loss, torch.randn(4, 8), torch.randn(4, 6))
    assert not feedback_of(model[0]).copied


@pytest.mark.parametrize("rule", ["pfa", "pfa-o", "kp"])
def test_an_earlier_state_is_restored_after_the_start_was_forgotten(rule):
    model = convert(mlp(), rule)
    optimizer = adamw(model)
    couple(model, optimizer, forgetting=5)
    steps(model, optimizer, 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    F = feedback_of(model[0]).feedback_weight(model[0].weight)
    steps(model, optimizer, 300)
    assert feedback_of(model[0]).K.numel() == 0
    model.load_state_dict(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(feedback_of(model[0]).feedback_weight(model[0].weight), F)
    steps(model, optimizer, 300)
    assert feedback_of(model[0]).K.numel() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("moved", ["before", "after"])
def test_in_half_precision_s_is_exact(dtype, moved):
    model = convert(mlp(), "pfa")
    model = model if moved == "after" else model.to(dtype)
    optimizer = adamw(model)
    couple(model, optimizer, forgetting=1000)
    model.to(dtype)
    steps(model, optimizer, 200)
    assert model[0].weight.dtype == dtype
    assert s_of(model) == pytest.approx((0.999 * (1 - 1e-3 * 0.05)) ** 200, rel=1e-12)


def test_a_cast_keeps_every_digit_of_s():
    model = convert(mlp(), "pfa")
    optimizer = adamw(model)
    couple(model, optimizer)
    steps(model, optimizer, 3)
    s = s_of(model)
    assert s_of(model.half()) == s and s_of(model.to("meta").to_empty(device="cpu")) is not None
    assert feedback_of(model[0]).forgetting.dtype == torch.float64


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_s_is_exact_after_a_checkpoint_in_another_precision(dtype, assign):
    small = {name: tensor.to(dtype) for name, tensor in convert(mlp(), "pfa").state_dict().items()}
    model = convert(mlp(), "pfa")
    model.load_state_dict(small, assign=assign)
    optimizer = adamw(model)
    couple(model, optimizer)
    steps(model, optimizer, 100)
    assert s_of(model) == pytest.approx((1 - 5e-5) ** 100, rel=1e-12)


def new_optimizer(model, handle, optimizer):
    handle.remove()
    return model, sgd(model, momentum=0.9)


def copied(model, handle, optimizer):
    model = copy.deepcopy(model)
    return model, sgd(model, momentum=0.9)


def cleared(model, handle, optimizer):
    optimizer.state.clear()
    return model, None


@pytest.mark.parametrize("change", [new_optimizer, copied, cleared])
def test_with_a_momentum_that_begins_anew_s_begins_so_too(change):
    finals = []
    for strategy in ("fused", "collapsed"):
        model = convert(mlp().double(), "pfa", options={"strategy": strategy, "law": "uniform"})
        optimizer, generator = sgd(model, momentum=0.9), torch.Generator().manual_seed(1)
        handle = couple(model, optimizer)
        steps(model, optimizer, 30, generator)
        model, other = change(model, handle, optimizer)
        if other is not None:
            couple(model, other)
        steps(model, other or optimizer, 20, generator)
        finals.append(torch.cat([feedback_of(model[0]).feedback_weight(model[0].weight), model[0].weight]))
    assert relative_error(finals[1], finals[0]) < 1e-12


@pytest.mark.parametrize("loaded", [True, False])
def test_a_group_is_known_wherever_it_is_in_the_optimizer(loaded):
    model = convert(mlp(), "pfa")
    groups = [
        {"params": layer.parameters(), "weight_decay": decay}
        for layer, decay in ((model[0], 0.1), (model[2], 1))
    ]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    couple(model, optimizer)
    optimizer.param_groups.reverse()
    if loaded:
        optimizer.load_state_dict(optimizer.state_dict())
    steps(model, optimizer, 1)
    assert (s_of(model), feedback_of(model[2]).forgetting[0].item()) == pytest.approx((0.995, 0.95))


def frozen(optimizer, first, second):
    """Stop the first layer."""
    del optimizer.param_groups[0]
    return 1, 0.95


def rebuilt(optimizer, first, second):
    groups = [{**group, "params": list(group["params"])} for group in reversed(optimizer.param_groups)]
    optimizer.param_groups = groups
    return 0.995, 0.95


def moved(optimizer, first, second):
    optimizer.param_groups[1]["params"].append(optimizer.param_groups[0]["params"].pop(0))
    return 0.95, 0.95


def merged(optimizer, first, second):
    optimizer.param_groups[0]["params"] += optimizer.param_groups.pop(1)["params"]
    return 0.995, 0.995


@pytest.mark.parametrize("change", [frozen, rebuilt, moved, merged])
def test_a_weight_forgets_by_the_group_that_has_it_now(change):
    model = convert(mlp(), "pfa")
    first, second = list(model[0].parameters()), list(model[2].parameters())
    optimizer = torch.optim.SGD(
        [{"params": first, "weight_decay": 0.1}, {"params": second, "weight_decay": 1}], lr=0.05
    )
    handle = couple(model, optimizer)
    left = change(optimizer, first, second)
    steps(model, optimizer, 1)
    assert (s_of(model), feedback_of(model[2]).forgetting[0].item()) == pytest.approx(left)
    assert ("100.0%" in str(handle) and "never" in str(handle)) == (change is frozen)


class Centred(torch.optim.AdamW):
    """An optimizer whose step calls that of its base."""

    def step(self, closure=None):
        return super().step(closure)


register_decay(Centred, lambda group: 1 - group["lr"] * group["weight_decay"])


@pytest.mark.parametrize("with_others", [True, False])
def test_a_step_that_calls_its_base_class_is_one_step(with_others):
    model = convert(mlp(), "pfa")
    if with_others:  # PyTorch puts its hooks into a class when the first optimizer of it is made
        adamw(mlp())
    optimizer = Centred(model.parameters(), lr=0.01, weight_decay=0.5)
    handle = couple(model, optimizer)
    steps(model, optimizer, 5)
    assert s_of(model) == pytest.approx(0.995**5, rel=1e-12) and handle.steps == 5


def test_a_step_that_fails_is_no_step():
    model = convert(mlp(), "pfa")
    optimizer = sgd(model)
    handle = couple(model, optimizer)

    def fails():
        raise RuntimeError("in the closure")

    with pytest.raises(RuntimeError, match="in the closure"):
        optimizer.step(fails)
    assert s_of(model) == 1
    steps(model, optimizer, 1)
    assert s_of(model) == pytest.approx(0.995) and handle.steps == 1


def test_a_compiled_step_is_followed_too():
    model = convert(mlp(), "pfa")
    optimizer = sgd(model, momentum=0.9)
    couple(model, optimizer)
    model(torch.randn(4, 8)).sum().backward()
    torch._dynamo.reset()
    compiled = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        compiled()
    follower = convert(mlp(), "pfa")
    reference = sgd(follower, momentum=0.9)
    couple(follower, reference)
    follower(torch.randn(4, 8)).sum().backward()
    for _ in range(3):
        reference.step()
    assert s_of(model) == pytest.approx(s_of(follower), rel=1e-12) and s_of(model) < 1


@pytest.mark.parametrize("strategy", ["collapsed", "fused"])
def test_model_and_optimizer_go_at_once_when_nobody_needs_them(strategy):
    model = convert(mlp(), "pfa", options={"strategy": strategy})
    optimizer = sgd(model, momentum=0.9)
    handle = couple(model, optimizer)
    steps(model, optimizer, 2)
    gone = [weakref.ref(model[0].weight), weakref.ref(optimizer), weakref.ref(feedback_of(model[0]))]
    gc.disable()
    try:
        del optimizer
        assert gone[1]() is None
        if strategy == "collapsed":
            with pytest.raises(UserError, match="is gone"):
                str(handle)
        couple(model, sgd(model))
        del model, handle
        assert all(one() is None for one in gone)
    finally:
        gc.enable()


class Wrapper:
    """As schedules of one's own are written, around an optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups


def test_what_couple_refuses_it_leaves_as_it_was():
    model = convert(mlp(), "pfa")
    optimizer = sgd(model)
    for wrong in (Wrapper(optimizer), [optimizer], model.parameters(), model):
        with pytest.raises(UserError, match="tells of its steps"):
            couple(model, wrong)
    for others in ([optimizer], [sgd(model)]):
        with pytest.raises(UserError, match=r"of shape \(12, 8\) is given to couple twice"):
            couple(model, optimizer, *others)
    for forgetting in ("40", 0, float("nan")):
        with pytest.raises(UserError, match="at least 1 step"):
            couple(model, optimizer, forgetting=forgetting)
    couple(model, optimizer)


def test_after_remove_a_model_is_coupled_again_and_goes_on():
    model = convert(mlp(), "pfa")
    optimizer = adamw(model)
    handle = couple(model, optimizer)
    steps(model, optimizer, 5)
    handle.remove()
    couple(model, optimizer, forgetting=40)
    steps(model, optimizer, 5)
    assert s_of(model) == pytest.approx((1 - 5e-5) ** 10 * 0.975**5, rel=1e-12)


@pytest.mark.parametrize("how", ["removed", "gone"])
def test_a_model_that_goes_on_uncoupled_warns_too(how):
    model = convert(mlp(), "pfa")
    optimizer = sgd(model)
    handle = couple(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(model, optimizer, 3)
        if how == "removed":
            handle.remove()
        optimizer = sgd(model)
        steps(model, optimizer, 1)  # nothing has moved before this one
    with pytest.warns(UserWarning, match=r"couple\(model, optimizer\)") as caught:
        steps(model, optimizer, 3)
    assert len(caught) == 1


def test_a_copy_is_coupled_with_an_optimizer_that_goes_on():
    whole, model = (convert(mlp().double(), "pfa") for _ in range(2))
    optimizer, generator = sgd(model, momentum=0.9), torch.Generator().manual_seed(1)
    couple(model, optimizer)
    steps(model, optimizer, 5, generator)
    model, loaded = copy.deepcopy(model), optimizer.state_dict()
    optimizer = sgd(model, momentum=0.9)
    optimizer.load_state_dict(loaded)
    couple(model, optimizer)
    steps(model, optimizer, 5, generator)
    reference = sgd(whole, momentum=0.9)
    couple(whole, reference)
    steps(whole, reference, 10)
    assert s_of(model) == pytest.approx(s_of(whole), rel=1e-12)


def test_the_copy_of_a_handle_says_that_it_follows_nothing():
    model = convert(mlp(), "pfa")
    optimizer = sgd(model)
    holder = {"model": model, "optimizer": optimizer, "handle": couple(model, optimizer)}
    copied = copy.deepcopy(holder)
    steps(copied["model"], copied["optimizer"], 3)
    assert str(copied["handle"]).count("never") == 2 and "never" not in str(holder["handle"])
    with pytest.raises(UserError, match="follows no optimizer"), copied["handle"].kept():
        pass


def test_a_state_that_was_pickled_before_it_could_be_kept_works():
    model = convert(mlp(), "pfa")
    for feedback in (feedback_of(model[0]), feedback_of(model[2])):
        for later in ("kept", "copied"):
            feedback.__dict__.pop(later, None)
    optimizer = sgd(model)
    couple(model, optimizer)
    steps(model, optimizer, 101)
    assert s_of(model) < 1


def test_the_closed_form_is_not_loaded_into_a_coupled_plastic_weight():
    collapsed, fused = (convert(mlp(), "pfa", options={"strategy": s}) for s in ("collapsed", "fused"))
    fresh = convert(mlp(), "pfa", options={"strategy": "fused"})
    optimizer = sgd(fused)
    couple(fused, optimizer)
    with pytest.raises(UserError, match="load before couple"):
        fused.load_state_dict(collapsed.state_dict())
    fresh.load_state_dict(collapsed.state_dict())
    assert alignment(fresh) == alignment(collapsed)


def test_an_optimizer_without_decay_is_said_to_have_none():
    model = convert(mlp(), "pfa")
    handle = couple(model, torch.optim.Rprop(model.parameters()))
    assert all("weight_decay is 0" in said for said in handle.strategy.values())
