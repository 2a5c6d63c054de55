"""Converted models under torch.compile, torch.export and ONNX.

Compiling takes as long as a model is deep; models whose constructor allows it have one block of each kind.
"""

import copy

import pytest
import timm
import torch
from timm.models.byobnet import model_cfgs as byob_configurations
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import ResNet, VisionTransformer, segmentation
from torchvision.models.resnet import Bottleneck

from pfa_convert import convert
from pfa_convert.models import build

COMPILED = [
    "test_byobnet",
    "test_convnext",
    "test_convnext2",
    "test_convnext3",
    "test_efficientnet",
    "test_efficientnet_evos",
    "test_efficientnet_gn",
    "test_efficientnet_ln",
    "test_mambaout",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "test_vit2",
    "test_vit3",
    "test_vit4",
    "resnet10t",
    "lcnet_050",
    "mobilenetv3_small_050",
    "convnext_atto",
    "efficientvit_m0",
    "mobileone_s0",
    "paper/resnet20",
    "torchvision/resnet18",
    "torchvision/squeezenet1_1",
]


SHALLOW = {
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "efficientvit_m0": {"depth": (1, 1, 1)},
    "mobileone_s0": {"blocks": [stage[:2] for stage in byob_configurations["mobileone_s0"].blocks]},
    "test_mambaout": {"depths": (1, 1, 1, 1)},
    "test_nfnet": {"depths": (1, 1, 1, 1)},
    "test_vit": {"depth": 2},
    "test_vit2": {"depth": 2},
    "test_vit3": {"depth": 2},
    "test_vit4": {"depth": 2},
}


def gradients(call, model, x):
    torch.manual_seed(0)
    model.zero_grad()
    call(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("rule", ["pfa"])
def test_a_converted_model_compiles_in_one_graph(name, rule):
    torch.manual_seed(0)
    full_name = name if "/" in name else f"timm/{name}"
    plain = build(full_name, num_classes=5, **SHALLOW.get(name, {})).double()
    size = 32 if name.startswith("paper") else 160 if "vit" in name else 64
    model, x = convert(plain, rule, options={"expansion": 1}), torch.randn(2, 3, size, size).double()
    eager = gradients(model, model, x)
    torch.compiler.reset()
    compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), model, x)
    assert compiled.keys() == eager.keys()
    scale = max(gradient.norm() for gradient in eager.values())
    for name, gradient in eager.items():
        # PyTorch 2.11 compiles attention, a plain model's too, with rounding above that of float64.
        assert (compiled[name] - gradient).norm() <= 1e-6 * max(gradient.norm(), 1e-3 * scale), name


def small_resnet50():
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7)


def small_vit_b_16():
    sizes = {"image_size": 32, "patch_size": 16, "hidden_dim": 24, "mlp_dim": 48}
    return VisionTransformer(**sizes, num_layers=2, num_heads=3, num_classes=7)


@pytest.mark.parametrize("make", [small_resnet50, small_vit_b_16])
def test_onnx_has_the_plain_models_operations_and_outputs(make):
    runtime = pytest.importorskip("onnx.reference")
    torch.manual_seed(0)
    plain = make().eval()
    x = torch.randn(1, 3, 32, 32)
    graphs = []
    for model in (plain, convert(plain, "fa").eval()):
        exported = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
        graphs.append(exported.model_proto)
    theirs, ours = ([node.op_type for node in graph.graph.node] for graph in graphs)
    assert ours == theirs
    inputs = {graphs[1].graph.input[0].name: x.numpy()}
    (output,) = runtime.ReferenceEvaluator(graphs[1]).run(None, inputs)
    assert torch.allclose(torch.from_numpy(output), plain(x), atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_nfnet", "swin_tiny_patch4_window7_224"])
def test_an_exported_model_is_the_plain_one(name):
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=5).eval()
    size = timm.get_pretrained_cfg(name).input_size[-1]
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        exported = torch.export.export(convert(plain, "pfa", options={"expansion": 1}).eval(), (x,))
        assert torch.equal(exported.module()(x), plain(x))


def test_an_exported_segmentation_model():
    plain = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exported = torch.export.export(convert(plain, "fa").eval(), (x,))
        assert torch.equal(exported.module()(x)["out"], plain(x)["out"])


def assert_compiled_is_eager(model, x, **options):
    torch.compiler.reset()  # after so many models that run the same code, it is compiled no more
    eager = gradients(model, model, x)
    compiled = gradients(torch.compile(model, backend="aot_eager", **options), model, x)
    assert eager.keys() == compiled.keys() and all(
        torch.allclose(compiled[name], gradient, rtol=1e-10) for name, gradient in eager.items()
    )


class Checkpointed(nn.Module):
    """Applies a weight of its own within a checkpoint, called by each of the names that it has."""

    def __init__(self, by_path):
        super().__init__()
        self.below, self.W = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))
        self.by_path = by_path

    def forward(self, x):
        if self.by_path:
            return torch.utils.checkpoint.checkpoint(self.apply_own, self.below(x), use_reentrant=False)
        return checkpoint(self.apply_own, self.below(x), use_reentrant=False)

    def apply_own(self, x):
        return (x @ self.W).relu()


@pytest.mark.parametrize("by_path", [False, True])
def test_a_weight_within_a_checkpoint_keeps_its_feedback_when_compiled(by_path):
    torch.manual_seed(0)
    model, x = convert(Checkpointed(by_path), "fa").double(), torch.randn(3, 4).double()
    assert_compiled_is_eager(model, x)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.W = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x):
        scores, chosen = self.router(x).max(-1)
        return torch.einsum("boi,bi,b->bo", self.W[chosen, ...], x, scores)


@pytest.mark.parametrize("strategy", ["collapsed", "fused"])
def test_experts_that_are_looked_up_compile_in_one_graph(strategy):
    torch.manual_seed(0)
    plain = nn.Sequential(Experts(), Experts()).double()
    model = convert(plain, "pfa", options={"strategy": strategy})
    assert_compiled_is_eager(model, torch.randn(5, 4).double(), fullgraph=True)


class ChosenInTurn(nn.Module):
    """Runs through the experts that its input has chosen: no compiler follows that to the end."""

    def __init__(self):
        super().__init__()
        self.below, self.router = nn.Linear(4, 4), nn.Linear(4, 3)
        self.W = nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x):
        x = self.below(x)
        chosen = self.router(x).argmax(-1)
        out = torch.zeros_like(x)
        for expert in torch.nn.functional.one_hot(chosen, 3).sum(0).nonzero()[:, 0]:
            rows = torch.where(chosen == expert)[0]
            out = out.index_add(0, rows, torch.tanh(x[rows]) @ self.W[expert])
        return out


class FixedTurn(nn.Module):
    """Takes its experts by the elements of a tensor."""

    def __init__(self):
        super().__init__()
        self.below, self.W = nn.Linear(4, 4), nn.Parameter(torch.randn(3, 4, 4))
        self.register_buffer("chosen", torch.tensor([0, 2]))

    def forward(self, x):
        x = torch.tanh(self.below(x))
        return sum(x @ self.W[expert] for expert in self.chosen)


@pytest.mark.parametrize("make", [ChosenInTurn, FixedTurn])
@pytest.mark.parametrize("rule", ["fa", "pfa"])
def test_a_forward_that_compiles_in_pieces_only_is_left_whole(make, rule):
    torch.manual_seed(0)
    x = torch.randn(5, 4).double()
    model = convert(make().double(), rule, example=((x,), {}))
    torch.compiler.reset()
    assert_compiled_is_eager(model, x)


class Handed(nn.Module):
    def forward(self, x, W):
        return torch.tanh(x) @ W.t()


class HandsOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.below, self.head, self.W = nn.Linear(4, 4), Handed(), nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return self.head(self.below(x), self.W)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch looks for it, in a plain model too
@pytest.mark.parametrize("rule", ["fa", "usf"])
def test_a_compiled_module_knows_the_weights_that_it_is_handed(rule):
    """Only the child is compiled: the forward around it, which knows the weight, is not."""
    torch.manual_seed(0)
    model, x = convert(HandsOn().double(), rule), torch.randn(5, 4).double()
    compiled = copy.deepcopy(model)
    compiled.head.compile(backend="aot_eager")
    torch.compiler.reset()
    for _ in range(3):
        (eager, below), (ours, ours_below) = both(model, x), both(compiled, x)
        assert torch.allclose(below, ours_below, rtol=1e-10)
        assert all(torch.allclose(ours[name], eager[name], rtol=1e-10) for name in eager)
        with torch.no_grad():
            for parameter, same in zip(model.parameters(), compiled.parameters(), strict=True):
                same.copy_(parameter.add_(torch.randn_like(parameter)))


def both(model, x):
    x = x.clone().requires_grad_()
    found = gradients(model, model, x)
    return found, x.grad
