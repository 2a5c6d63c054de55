"""Five rules in one ResNet-18: each layer's gradient is the one that its own rule's formula gives."""

import pytest
import torch
from harness import relative_error
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

from pfa_convert import convert, couple

RULES = {"stem": "usf", "layer1": "fa", "layer2": "kp", "layer3": "pfa", "layer4": "pfa-o", "fc": "bp"}


def rule_of(name):
    return RULES.get(name.partition(".")[0], "usf")


def mixture(strategy="fused"):
    torch.manual_seed(0)
    plain = resnet18(num_classes=5).double()
    overrides = [{"match": f"{part}*", "rule": rule} for part, rule in RULES.items() if part != "stem"]
    for override in overrides:
        if override["rule"] in ("kp", "pfa", "pfa-o"):
            override["options"] = {"strategy": strategy}
        if override["rule"].startswith("pfa"):
            override["options"]["law"] = "uniform"
        if override["rule"] == "pfa":
            override["options"]["expansion"] = 2
    return plain, convert(plain, "usf", overrides=overrides)


def feedback_by_formula(model, name, layer):
    """F from the state that the rule names, written out."""
    W = layer.weight.detach()
    if rule_of(name) == "bp":
        return W
    state = dict(layer.feedback_of_weight.state_dict())
    if rule_of(name) == "fa":
        return state["F0"]
    if rule_of(name) == "usf":
        return W.sign() * (2 / ((W.shape[0] + W.shape[1]) * W[0, 0].numel())) ** 0.5
    if rule_of(name) == "kp":
        return state["F"]
    return torch.einsum("om,mikl->oikl", state["B"][0], state["R"])


class ThroughF(torch.autograd.Function):
    """A convolution or a linear map by PyTorch's own gradient functions, with F on the way down."""

    @staticmethod
    def forward(ctx, x, W, b, F, layer):
        ctx.save_for_backward(x, W, F)
        ctx.layer = layer
        if isinstance(layer, nn.Linear):
            return functional.linear(x, W, b)
        return functional.conv2d(x, W, b, layer.stride, layer.padding)

    @staticmethod
    def backward(ctx, delta):
        x, W, F = ctx.saved_tensors
        if isinstance(ctx.layer, nn.Linear):
            return delta @ F, delta.t() @ x, delta.sum(0), None, None
        how = {"stride": ctx.layer.stride, "padding": ctx.layer.padding}
        below = torch.nn.grad.conv2d_input(x.shape, F, delta, **how)
        return below, torch.nn.grad.conv2d_weight(x, W.shape, delta, **how), None, None, None


def gradients(model, x, targets):
    model.zero_grad()
    functional.cross_entropy(model(x), targets).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    return torch.randn(4, 3, 64, 64).double(), torch.arange(4)


def test_every_layers_gradient_is_its_own_rules(batch):
    plain, model = mixture()
    assert set(model.conversion.counts()) == set(RULES.values())
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            F = feedback_by_formula(model, name, model.get_submodule(name))
            layer.forward = lambda x, layer=layer, F=F: ThroughF.apply(x, layer.weight, layer.bias, F, layer)
    expected, ours = gradients(plain, *batch), gradients(model, *batch)
    assert all(relative_error(ours[name], expected[name]) <= 1e-10 for name in expected)  # 21 layers deep
    for name, layer in model.named_modules():
        if rule_of(name).startswith("pfa") and isinstance(layer, nn.Conv2d):
            learned = torch.einsum("om,oikl->mikl", layer.feedback_of_weight.B[0], expected[f"{name}.weight"])
            assert relative_error(ours[f"{name}.feedback_of_weight.R"], learned) <= 1e-10


def test_a_mixture_trains_coupled_as_it_does_uncoupled(batch):
    models = [mixture(strategy)[1] for strategy in ("fused", "collapsed")]
    losses = []
    for model, coupled in zip(models, (False, True), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
        if coupled:
            chosen = set(couple(model, optimizer).strategy.values())
            assert "collapsed" in chosen and any(c.startswith("fixed") for c in chosen)
        for _ in range(3):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_direct_feedback_goes_with_the_other_rules(batch):
    torch.manual_seed(0)
    plain = resnet18(num_classes=5).double()
    model = convert(
        plain, "pfa-o", overrides=[{"match": "layer1*", "rule": "dfa"}, {"match": "fc", "rule": "bp"}]
    )
    ours = gradients(model, *batch)
    assert {site.weight for site in model.conversion.sites} <= ours.keys()
    with torch.no_grad():
        e = (model(batch[0]).softmax(1) - functional.one_hot(batch[1], 5)) / 4
    assert relative_error(ours["fc.bias"], e.sum(0)) <= 1e-10
