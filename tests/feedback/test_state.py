"""What must not be wrong in silence: frozen, complex, uninitialised weights, old checkpoints, devices."""

import subprocess
import sys

import pytest
import torch
from harness import relative_error
from torch import nn

from pfa_convert import UserError, convert, couple
from pfa_convert.rules import RULES


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))


def train(model, steps=20):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    couple(model, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("rule", ["kp", "pfa", "pfa-o"])
@pytest.mark.parametrize("strategy", ["fused", "collapsed", "explicit"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_feedback_of_a_frozen_weight_does_not_drift(rule, strategy, when):
    if strategy not in RULES[rule].strategies:
        pytest.skip("kp has no middle population")
    plain = mlp()
    if when == "before":
        plain[2].requires_grad_(False)
    model = convert(plain, rule, options={"strategy": strategy})
    if when == "after":
        model[2].requires_grad_(False)
    else:
        assert not any(p.requires_grad for p in model[2].parameters())
    feedback, W = model[2].feedback_of_weight, model[2].weight
    before = feedback.feedback_weight(W).clone()
    moving = model[0].feedback_of_weight.feedback_weight(model[0].weight).clone()
    train(model)
    assert torch.equal(feedback.feedback_weight(W), before)
    assert not torch.equal(model[0].feedback_of_weight.feedback_weight(model[0].weight), moving)


@pytest.mark.parametrize("rule", ["fa", "usf", "kp", "pfa", "pfa-o"])
def test_complex_weights_are_refused_and_bp_leaves_them_alone(rule):
    plain = nn.Sequential(nn.Linear(3, 4, dtype=torch.complex128))
    with pytest.raises(UserError, match=r"0\.weight is complex"):
        convert(plain, rule)
    model = convert(plain, "bp")
    x = torch.randn(2, 3, dtype=torch.complex128)
    for one in (plain, model):
        one(x).abs().square().sum().backward()
    assert relative_error(model[0].weight.grad, plain[0].weight.grad) == 0


@pytest.mark.parametrize("rule", ["fa", "kp", "pfa", "pfa-o"])
def test_state_that_was_never_initialised_is_refused(rule):
    with torch.device("meta"):
        plain = mlp()
    plain_state = mlp().state_dict()
    model = convert(plain, rule).to_empty(device="cpu")
    with pytest.raises(UserError, match="never initialised"):
        model.load_state_dict(plain_state)
    with pytest.raises(UserError, match="never initialised"):
        model(torch.randn(2, 8))
    with pytest.raises(UserError, match="never initialised"):
        convert(plain, rule).load_state_dict(plain_state, assign=True)
    whole = convert(mlp(), rule)
    model.load_state_dict(whole.state_dict())
    model(torch.randn(2, 8)).sum().backward()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize("rule", ["kp", "pfa", "pfa-o"])
def test_a_checkpoint_with_a_plastic_tensor_is_refused_with_the_way_to_load_it(rule):
    earlier = convert(mlp(), rule, options={"strategy": "fused"})
    state = earlier.state_dict()
    with pytest.raises(UserError, match="strategy': 'fused'"):
        convert(mlp(), rule).load_state_dict(state)
    again = convert(mlp(), rule, options={"strategy": "fused"}, seed=5)
    again.load_state_dict(state)
    F = again[2].feedback_of_weight.feedback_weight(again[2].weight)
    handle = couple(again, torch.optim.SGD(again.parameters(), lr=0.1, weight_decay=0.1), collapse=True)
    assert set(handle.strategy.values()) == {"collapsed"}
    collapsed = again[2].feedback_of_weight.feedback_weight(again[2].weight)
    assert relative_error(collapsed, F) < 1e-5
    convert(mlp(), rule).load_state_dict(again.state_dict())


LAZY_RULES = ["bp", "fa", "usf", "frsf", "kp", "pfa", "pfa-o", "dfa"]
LAZY = """
import sys, torch, torch._lazy.ts_backend
from torch import nn
from pfa_convert import alignment, convert, couple
torch._lazy.ts_backend.init()
def steps(rule, device):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    model = convert(plain, rule, options={"strategy": "explicit"} if rule == "bp" else {}).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    couple(model, optimizer)
    for _ in range(2):
        x = torch.linspace(-1, 1, 24).reshape(4, 6).to(device)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model
for rule in sys.argv[1:]:
    here, there = steps(rule, "cpu"), steps(rule, "lazy")
    for name, tensor in here.state_dict().items():
        other = there.state_dict()[name].to("cpu")
        assert torch.allclose(other.double(), tensor.double(), rtol=1e-4, atol=1e-5), (rule, name)
    angles = [alignment(model) for model in (here, there)]
    for site, values in angles[0].items():
        assert abs(values["angle_deg"] - angles[1][site]["angle_deg"]) < 1e-2, (rule, site)
    print(rule)
"""


def test_a_second_device_that_autocast_does_not_know():
    done = subprocess.run(
        [sys.executable, "-c", LAZY, *LAZY_RULES], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == LAZY_RULES
