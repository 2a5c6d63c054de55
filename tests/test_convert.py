"""Real models: the forward to the last bit, backpropagation to the last bit, checkpoints both ways."""

import copy
import json
from collections import Counter

import pytest
import timm
import torch
import torchvision
from harness import EXACT, relative_error
from safetensors.torch import load_file, save_file

from pfa_convert import UserError, convert, load, revert, save, strip_feedback
from pfa_convert.comparison import forward_difference
from pfa_convert.models import build


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
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10), 64),
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


def operations_behind(output):
    """Count the operations that the error will go back through, by name."""
    counts, stack, seen = Counter(), [output.grad_fn], {output.grad_fn}
    while stack:
        node = stack.pop()
        counts[node.name()] += 1
        fresh = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= fresh
        stack.extend(fresh)
    return counts


PLAIN_OPERATIONS = {"ConvolutionBackward0", "AddmmBackward0", "MmBackward0", "LinearBackward0"}


def test_every_site_is_really_rewritten(case):
    plain, x = case
    theirs, ours = operations_behind(plain.train()(x)), operations_behind(convert(plain, "fa").train()(x))
    assert not ours.keys() & PLAIN_OPERATIONS
    assert ours["FeedbackPassBackward"] == sum(theirs[name] for name in PLAIN_OPERATIONS) > 0


def test_every_site_of_torchvisions_transformer_is_really_rewritten():
    plain = torchvision.models.VisionTransformer(32, 8, 2, 4, 48, 64, num_classes=10)
    model = convert(plain, "fa")
    assert not model.conversion.skipped
    ours = operations_behind(model(torch.randn(2, 3, 32, 32)))
    # A patch embedding, two blocks of four (in_proj in one piece), and the head.
    assert not ours.keys() & PLAIN_OPERATIONS and ours["FeedbackPassBackward"] == 10
    assert len(model.conversion.sites) == 10


@pytest.mark.parametrize("site", ["layer2.0.conv1", "layer3.1.conv2", "fc"])
def test_a_rule_changes_the_gradients_below_its_site_and_no_other(site):
    torch.manual_seed(0)
    plain = build("paper/resnet20").double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model = convert(plain, "bp", overrides=[{"match": site, "rule": "fa"}])
    assert model.conversion.counts() == {"bp": 19, "fa": 1}
    ours, theirs = gradients(model, x), gradients(plain, x)
    names = [name for name in theirs if "feedback_of" not in name]
    above = names.index(f"{site}.weight")  # parameters are named in the order of execution
    assert all(torch.equal(ours[name], theirs[name]) for name in names[above:])
    assert all(not torch.equal(ours[name], theirs[name]) for name in names[:above] if theirs[name].any())


@pytest.mark.parametrize("name", ["beit", "resnet20"])
def test_explicit_and_fused_agree_in_a_whole_model(name):
    torch.manual_seed(0)
    plain, x = MODELS[name][0]().double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    options = {"expansion": 1.5, "law": "uniform"}
    explicit = gradients(convert(plain, "pfa", options={**options, "strategy": "explicit"}), x)
    fused = gradients(convert(plain, "pfa", options={**options, "strategy": "fused"}), x)
    assert explicit.keys() == fused.keys() and any(name.endswith(".R") for name in fused)
    # Rounding errors add up over the layers, as they do between any two orders of summation.
    assert all(relative_error(fused[n], explicit[n]) < 1e-10 for n in fused if explicit[n].norm() > 1e-9)


def test_channels_last_keeps_outputs_and_gradients():
    torch.manual_seed(0)
    plain = build("paper/resnet20").double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model = convert(plain, "pfa", options={"expansion": 2})
    reference = gradients(copy.deepcopy(model), x)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    assert model.conv1(x).is_contiguous(memory_format=torch.channels_last)
    ours = gradients(model, x)
    assert all(relative_error(ours[n], reference[n]) < 1e-10 for n in ours if reference[n].norm() > 1e-9)


def test_a_copy_is_converted_unless_asked_for_in_place():
    plain = build("paper/mlp")
    model = convert(plain)
    assert model is not plain and not hasattr(plain, "conversion") and type(plain[1]) is torch.nn.Linear
    weight = plain[1].weight
    assert convert(plain, inplace=True) is plain and plain[1].weight is weight
    assert revert(plain, inplace=True) is plain and type(plain[1]) is torch.nn.Linear


def test_converting_twice_or_reverting_a_plain_model_is_a_mistake():
    with pytest.raises(UserError, match="converted already"):
        convert(convert(build("paper/mlp")))
    with pytest.raises(UserError, match="not a converted one"):
        revert(build("paper/mlp"))
    again = convert(revert(convert(build("paper/mlp"), "fa")), "kp")
    assert again.conversion.counts() == {"kp": 3}


def test_the_mode_and_frozen_weights_are_kept():
    plain = torchvision.models.resnet18(num_classes=10).eval()
    plain.conv1.weight.requires_grad_(False)
    model = convert(plain, "pfa", options={"expansion": 1})
    assert not any(module.training for name, module in model.named_modules() if "feedback_of" not in name)
    assert not model.conv1.weight.requires_grad and model.fc.weight.requires_grad


def test_a_state_dict_goes_through_safetensors(tmp_path):
    model = convert(build("paper/resnet20"), "pfa", options={"expansion": 2, "feedback_density": 0.5})
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    other = convert(build("paper/resnet20"), "pfa", options={"expansion": 2, "feedback_density": 0.5}, seed=7)
    assert not torch.equal(other.fc.feedback_of_weight.B, model.fc.feedback_of_weight.B)
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert all(torch.equal(other.state_dict()[n], tensor) for n, tensor in model.state_dict().items())


def test_the_report_is_plain_data():
    report = convert(build("paper/resnet20"), "pfa", overrides=[{"match": "fc", "rule": "bp"}]).conversion
    data = json.loads(json.dumps(report.to_dict()))
    assert len(data["sites"]) == 20 and data["counts"] == {"pfa": 19, "bp": 1} and data["skipped"] == []
    last = data["sites"][-1]
    assert (last["name"], last["rule"], last["weight_shape"], last["reason"]) == (
        "fc",
        "bp",
        [10, 64],
        "overrides[0]",
    )
    state = convert(build("paper/resnet20"), "pfa").state_dict()
    added = sum(tensor.numel() for name, tensor in state.items() if "feedback_of" in name)
    assert convert(build("paper/resnet20"), "pfa").conversion.feedback_elements == added


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
