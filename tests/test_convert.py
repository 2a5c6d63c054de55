"""Real models: the forward to the last bit, backpropagation to the last bit, checkpoints both ways."""

import copy

import pytest
import timm
import torch
import torchvision
from harness import EXACT, relative_error
from safetensors.torch import load_file, save_file
from torch.nn import functional

from pfa_convert import UserError, alignment, convert, gradient_angles, load, revert, save, strip_feedback
from pfa_convert.models import build
from pfa_convert.verify import forward_difference


def beit():
    return timm.models.beit.Beit(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=4,
        num_classes=10,
        qkv_bias=True,
        init_values=0.1,
        use_rel_pos_bias=True,
        drop_path_rate=0.2,
    )


MODELS = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 64),
    "mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), 64),
    "vit": (lambda: timm.create_model("test_vit", num_classes=10), 160),
    "beit": (beit, 32),
    "nfnet": (lambda: timm.create_model("test_nfnet", num_classes=10), 96),
    "resnet20": (lambda: build("paper/resnet20"), 32),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    torch.manual_seed(0)
    make, size = MODELS[request.param]
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():  # no gain, bias or layer scale that starts at zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, torch.randn(4, 3, size, size)


def gradients(model, x):
    torch.manual_seed(2)
    model.train()
    model(x).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rule", ["pfa", "fa"])
def test_the_forward_is_unchanged_to_the_last_bit(case, rule):
    plain, x = case
    assert forward_difference(plain, convert(plain, rule), x) == 0


def test_bp_gives_every_gradient_bit_for_bit(case):
    plain, x = case
    ours, theirs = gradients(convert(plain, "bp"), x), gradients(copy.deepcopy(plain), x)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_site_through_the_primitive_with_F_equal_to_W_is_backpropagation(case):
    plain, x = case
    plain, x = copy.deepcopy(plain).double(), x.double()
    converted = convert(plain, "bp", options={"strategy": "explicit"})
    ours, theirs = gradients(converted, x), gradients(plain, x)
    assert all(relative_error(ours[name], theirs[name]) <= EXACT for name in theirs if theirs[name].any())


def test_every_site_is_really_rewritten(case):
    plain, x = case
    theirs = gradients(copy.deepcopy(plain), x)
    sites = convert(plain, "bp").conversion.sites
    for site in sites[1 :: max(1, len(sites) // 6)]:
        model = convert(plain, "bp", overrides=[{"match": site.name, "rule": "fa"}])
        ours = gradients(model, x)
        assert any(not torch.equal(ours[name], theirs[name]) for name in theirs), site.name


def test_resnet50_has_54_sites():
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    report = convert(model).conversion
    assert [site.kind for site in report.sites] == ["Conv2d"] * 53 + ["Linear"]
    assert not report.skipped
    assert "54 sites (54 pfa), 0 skipped" in str(report)


def test_checkpoints_load_both_ways_strictly(case):
    plain, _ = case
    converted = convert(plain, "pfa", options={"expansion": 2})
    other = {name: tensor + 1 for name, tensor in plain.state_dict().items()}
    before = {n: t.clone() for n, t in converted.state_dict().items() if "feedback_of" in n}
    converted.load_state_dict(other, strict=True)
    stripped = strip_feedback(converted.state_dict())
    assert stripped.keys() == other.keys() and all(torch.equal(stripped[n], other[n]) for n in other)
    copy.deepcopy(plain).load_state_dict(stripped, strict=True)
    assert all(torch.equal(converted.state_dict()[name], tensor) for name, tensor in before.items())


def test_revert_gives_back_the_plain_model_with_the_trained_weights(case):
    plain, x = case
    converted = convert(plain, "kp")
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.mul_(1.01)
    back = revert(converted)
    assert list(back.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in back.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(back.eval()(x), converted.eval()(x))


def test_timms_own_methods_survive():
    model = convert(timm.create_model("test_vit", num_classes=10), "fa")
    x = torch.randn(2, 3, 160, 160)
    assert torch.equal(model.eval()(x), model.forward_head(model.forward_features(x)))
    assert model.get_classifier() is model.head and model.num_classes == 10 and model.default_cfg
    plain = gradients(model, x)
    model.zero_grad()
    model.set_grad_checkpointing(True)
    checkpointed = gradients(model, x)
    assert all(relative_error(checkpointed[name], plain[name]) < 1e-5 for name in plain if plain[name].any())


def test_exports_as_the_plain_operations():
    model = convert(torchvision.models.resnet18(), "pfa", options={"expansion": 1}).eval()
    with torch.no_grad():
        exported = torch.export.export(model, (torch.randn(1, 3, 64, 64),))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert "aten.conv2d.default" in targets and not any("bmm" in target for target in targets)


def test_a_saved_model_is_rebuilt_from_its_file(tmp_path):
    model = convert(
        build("resnet18", 7), "pfa", options={"expansion": 2}, overrides=[{"match": "fc", "rule": "bp"}]
    )
    save(model, tmp_path / "model.safetensors", "torchvision/resnet18", num_classes=7)
    loaded = load(tmp_path / "model.safetensors")
    assert loaded.conversion.counts() == {"pfa": 20, "bp": 1}
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "pickle", "missing"])
def test_other_files_are_refused(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    if damage == "truncated":
        save(convert(build("paper/mlp"), "fa"), path, "paper/mlp")
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "foreign":
        save_file({"x": torch.zeros(2)}, path)
        assert load_file(path)
    elif damage == "pickle":
        torch.save({"x": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load(path)


def test_reinit_draws_as_the_paper_does():
    model = convert(build("paper/resnet20"), reinit="xavier_uniform")
    weight = model.layer3[0].conv2.weight
    bound = (6 / (64 * 9 + 64 * 9)) ** 0.5
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-2) and not model.fc.bias.any()
    with pytest.raises(UserError, match="xavier_uniform"):
        convert(build("paper/mlp"), reinit="xavier")


def test_alignment_and_gradient_angles():
    torch.manual_seed(0)
    model = convert(
        build("paper/mlp", in_features=64, hidden=[16]), "fa", overrides=[{"match": "3", "rule": "bp"}]
    )
    W, F = model[1].weight, model[1].feedback_of_weight.F0
    cosine = (W * F).sum() / W.norm() / F.norm()
    measured = alignment(model)
    assert measured["1"]["angle_deg"] == pytest.approx(torch.rad2deg(cosine.acos()).item(), abs=1e-3)
    assert measured["1"]["norm_ratio"] == pytest.approx((F.norm() / W.norm()).item())
    assert measured["3"] == {"angle_deg": 0.0, "norm_ratio": 1.0}
    x, targets = torch.randn(8, 64), torch.randint(10, (8,))
    angles = gradient_angles(model, functional.cross_entropy, x, targets)
    assert angles == {"1": pytest.approx(0, abs=1e-3), "3": pytest.approx(0, abs=1e-3)}  # nothing below fa
    deeper = convert(build("paper/mlp", in_features=64, hidden=[16, 16]), "fa")
    angles = gradient_angles(deeper, functional.cross_entropy, x, targets)
    assert angles["5"] == pytest.approx(0, abs=1e-3) and 60 < angles["1"] < 120
    assert all(p.grad is None for p in deeper.parameters())


def test_a_plain_model_has_no_alignment():
    with pytest.raises(UserError, match="not a converted one"):
        alignment(build("paper/mlp"))
