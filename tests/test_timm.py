"""timm's own conveniences on a converted model, and its models' ways of behaving in the two modes."""

import copy

import pytest
import timm
import torch
import torchvision
from harness import relative_error
from torch import nn

from pfa_convert import UserError, convert, couple, revert
from pfa_convert.comparison import forward_difference


@pytest.fixture(params=["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def plain(request):
    torch.manual_seed(0)
    return (
        timm.create_model(request.param, num_classes=10, img_size=64)
        if "vit" in request.param
        else (timm.create_model(request.param, num_classes=10))
    )


def images():
    return torch.randn(2, 3, 64, 64)


def test_features_and_classifier_are_those_of_the_plain_model(plain):
    model, x = convert(plain, "fa").eval(), images()
    plain.eval()
    assert torch.equal(model.forward_features(x), plain.forward_features(x))
    assert torch.equal(model.forward_head(model.forward_features(x)), plain(x))
    assert model.get_classifier().weight is model.get_parameter(model.conversion.sites[-1].weight)
    assert model.num_classes == 10 and model.default_cfg == plain.default_cfg
    assert isinstance(model, type(plain))


def test_the_feature_maps_between_are_those_of_the_plain_model(plain):
    model, x = convert(plain, "fa").eval(), images()
    if not hasattr(plain, "forward_intermediates"):
        pytest.skip("has none")
    ours, theirs = (m.forward_intermediates(x, intermediates_only=True) for m in (model, plain.eval()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_new_classifier_is_converted_like_the_old_one(plain):
    model = convert(plain, "fa")
    before = {site.name for site in model.conversion.sites}
    F0 = {name: buffer for name, buffer in model.named_buffers() if name.endswith("F0")}
    model.reset_classifier(7)
    assert model.num_classes == 7 and model(images()).shape == (2, 7)
    assert {site.name for site in model.conversion.sites} == before
    head = model.get_classifier()
    assert head.feedback_of_weight.F0.shape == head.weight.shape == (7, head.in_features)
    kept = dict(model.named_buffers())
    assert sum(kept[name] is buffer for name, buffer in F0.items()) == len(F0) - 1


def test_a_coupled_model_keeps_its_coupled_state_when_the_classifier_is_new():
    model = convert(timm.create_model("resnet18", num_classes=10), "pfa", options={"expansion": 1})
    couple(model, torch.optim.SGD(model.parameters(), lr=0.1))
    first = model.conv1.feedback_of_weight
    model.reset_classifier(3)
    assert model.conv1.feedback_of_weight is first
    assert not model.fc.feedback_of_weight.coupled


def test_a_model_without_a_classifier():
    model = convert(timm.create_model("resnet18", num_classes=10), "fa")
    model.reset_classifier(0)
    assert model(images()).shape == (2, 512)
    assert "fc" not in {site.name for site in model.conversion.sites}


def test_a_new_classifier_survives_a_copy_and_is_reverted():
    model = convert(timm.create_model("resnet18", num_classes=10), "fa")
    twin = copy.deepcopy(model)
    twin.reset_classifier(3)
    assert twin.num_classes == 3 and model.num_classes == 10
    assert type(revert(twin)) is timm.models.resnet.ResNet


def test_an_override_for_the_old_head_alone_is_named():
    model = convert(timm.create_model("resnet18"), "fa", overrides=[{"match": "fc", "rule": "bp"}])
    with pytest.raises(UserError, match="'fc' matches no site"):
        model.reset_classifier(0)


def gradients(model, x):
    torch.manual_seed(1)
    model.train()
    model.zero_grad()
    model(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_gives_the_same_gradients(plain):
    model, x = convert(plain, "pfa", options={"expansion": 2}).double(), images().double()
    without = gradients(model, x)
    model.set_grad_checkpointing(True)
    ours = gradients(model, x)
    assert ours.keys() == without.keys()
    assert all(
        relative_error(ours[name], without[name]) <= 1e-9 for name in ours if without[name].norm() > 1e-9
    )


RANDOM = {
    "dropout and BatchNorm": lambda: timm.create_model(
        "mobilenetv3_small_050", drop_rate=0.3, drop_path_rate=0.3
    ),
    "stochastic depth": lambda: timm.create_model("resnet18", drop_path_rate=0.5),
    "drop block": lambda: timm.create_model("resnet18", drop_block_rate=0.3),
    "attention dropout": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=64, attn_drop_rate=0.2, proj_drop_rate=0.2, drop_path_rate=0.2
    ),
    "patch dropout": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, patch_drop_rate=0.5),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=2, drop_path_rate=0.3
    ),
    "convnext": lambda: timm.create_model("convnext_atto", drop_path_rate=0.5, drop_rate=0.5),
    "norm-free": lambda: timm.create_model("test_nfnet", drop_path_rate=0.3),
    "torchvision's efficientnet": lambda: torchvision.models.efficientnet_b0(stochastic_depth_prob=0.5),
    "torchvision's transformer": lambda: torchvision.models.VisionTransformer(
        32, 8, 2, 2, 32, 64, dropout=0.3, attention_dropout=0.3, num_classes=10
    ),
    "several outputs in training": lambda: torchvision.models.googlenet(init_weights=False, aux_logits=True),
}


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM.keys())
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_both_modes_behave_as_the_original(make):
    torch.manual_seed(0)
    plain = make()
    x = torch.randn(2, 3, 32, 32) if isinstance(plain, torchvision.models.VisionTransformer) else images()
    model = convert(plain, "fa")
    assert forward_difference(plain, model, x) == 0
    for training in (True, False, True):  # BatchNorm's statistics move alike
        outputs = []
        for either in (plain, model):
            torch.manual_seed(3)
            outputs.append(either.train(training)(x))
        first = [o if isinstance(o, torch.Tensor) else o[0] for o in outputs]
        assert torch.equal(*first)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("seed", range(3))
def test_channels_last_changes_nothing(seed):
    torch.manual_seed(seed)
    plain = timm.create_model("test_resnet", num_classes=10).double()
    model, x = convert(plain, "fa"), images().double()
    usual = gradients(model, x)
    ours = gradients(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    assert all(relative_error(ours[name], usual[name]) <= 1e-9 for name in usual if usual[name].norm() > 1e-9)


def test_autocast_gives_the_gradients_of_the_same_precision():
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)), "fa")
    x = torch.randn(4, 3, 8, 8)
    exact = gradients(model, x)
    torch.manual_seed(1)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.dtype == torch.bfloat16
    output.float().square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad.dtype == torch.float32 and relative_error(p.grad, exact[name]) < 0.03  # 8 bits
