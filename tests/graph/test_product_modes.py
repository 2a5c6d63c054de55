"""Products under autocast, with frozen weights, under transforms; and einsums that are no linear maps."""

import pytest
import torch
from harness import EXACT, relative_error
from test_forward_is_the_users import module, parameter
from test_products import gradients, inputs
from torch import nn
from torch.func import grad
from torch.nn import functional

from pfa_convert import convert
from pfa_convert.alignment import feedback_of

AUTOCAST = {
    "a complex product": (lambda s, x: (torch.fft.rfft(x) @ torch.view_as_complex(s.W)).abs(), (3, 5, 2)),
    "mv": (lambda s, x: torch.mv(s.W, x[0, 0].float()), (3, 4)),
    "matmul with a vector": (lambda s, x: s.W @ x[0, 0], (3, 4)),
    "linear": (lambda s, x: functional.linear(x, s.W), (3, 4)),
    "bilinear": (lambda s, x: functional.bilinear(x, x, s.W), (5, 4, 4)),
    "multi_dot": (lambda s, x: torch.linalg.multi_dot([x[0], s.W, s.W.t()]), (4, 5)),
    "addmv": (lambda s, x: torch.addmv(x[0, 0, :3], s.W, x[0, 0]), (3, 4)),
    "einsum": (lambda s, x: torch.einsum("bni,oi->bno", x, s.W), (5, 4)),
}


@pytest.mark.parametrize("rule", ["fa", "pfa", "kp"])
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_gives_each_product_the_types_of_the_plain_model(name, rule):
    torch.manual_seed(0)
    forward, shape = AUTOCAST[name]
    plain, x = module(forward, W=parameter(*shape)), inputs().float()
    model, twin = convert(plain, rule), convert(plain, "fa")
    with torch.no_grad():
        twin.feedback_of_W.F0.copy_(feedback_of(model, "W").feedback_weight(plain.W))
    with torch.autocast("cpu", torch.bfloat16):
        (output, below, ours), (plain_output, _, theirs) = gradients(model, x), gradients(plain, x)
        through = gradients(twin, x)[1]
    assert output.dtype == plain_output.dtype and torch.equal(output, plain_output)
    assert relative_error(ours["W"], theirs["W"]) <= 0.02
    assert relative_error(below, through) <= 0.02  # F is made in half precision, where autocast makes it


@pytest.mark.parametrize("rule", ["fa", "pfa", "pfa-o", "kp"])
def test_a_weight_that_two_products_have_in_other_forms(rule):
    """As it is, and as a view of its memory."""
    torch.manual_seed(0)
    plain = module(lambda s, x: x @ s.W @ s.W.view(3, 4) @ s.W, W=parameter(4, 3)).double()
    model, x = convert(plain, rule), inputs()
    F = feedback_of(model, "W").feedback_weight(plain.W)
    output, below, _ = gradients(model, x)
    delta = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert relative_error(below, delta @ F.t() @ F.reshape(3, 4).t() @ F.t()) <= EXACT


FROZEN = {
    "linear layer": lambda: nn.Linear(4, 4),
    "product": lambda: module(lambda s, x: x @ s.W, W=parameter(4, 4)),
    "product on the left": lambda: module(lambda s, x: s.W @ x, W=parameter(3, 3)),
}


class Added(nn.Module):
    """A layer whose input changes in place after it."""

    def __init__(self, frozen):
        super().__init__()
        self.first, self.frozen = nn.Linear(4, 4), frozen.requires_grad_(False)

    def forward(self, x):
        h = self.first(x) + 0
        h += self.frozen(h)
        return h


@pytest.mark.parametrize("rule", ["fa", "pfa", "kp", "pfa-o"])
@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_weight_does_not_keep_its_input(name, rule):
    torch.manual_seed(0)
    plain = Added(FROZEN[name]()).double()
    model, twin = convert(plain, rule), convert(plain, "fa")
    weight = next(site.weight for site in model.conversion.sites if "frozen" in site.weight)
    holder, _, attribute = weight.rpartition(".")
    F = {
        path: getattr(model.get_submodule(path), f"feedback_of_{name}").feedback_weight(
            getattr(plain.get_submodule(path), name)
        )
        for path, name in ((holder, attribute), ("first", "weight"))
    }
    (output, below, ours), (plain_output, *_) = gradients(model, inputs()), gradients(plain, inputs())
    assert torch.equal(output, plain_output)
    with torch.no_grad():
        for path, name in ((holder, attribute), ("first", "weight")):
            getattr(twin.get_submodule(path), f"feedback_of_{name}").F0.copy_(F[path])
            getattr(plain.get_submodule(path), name).copy_(F[path])
    assert relative_error(below, gradients(plain, inputs())[1]) <= EXACT
    assert all(
        relative_error(ours[key], value) <= EXACT for key, value in gradients(twin, inputs())[2].items()
    )


def test_a_frozen_linear_layer_saves_one_number_of_its_input():
    model, saved = convert(nn.Linear(64, 64).requires_grad_(False), "fa"), []

    def pack(tensor):
        saved.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randn(1000, 64, requires_grad=True))
    assert max(saved) == 64 * 64


SCALES = {
    "a scan's": (lambda s, x: torch.einsum("bld,dn->bldn", x, s.A), {"A": (4, 5)}),
    "a gate's": (lambda s, x: torch.einsum("bld,ld->bld", x, s.A), {"A": (3, 4)}),
    "a sum's": (lambda s, x: torch.einsum("bld,dn->bld", x, s.A), {"A": (4, 5)}),
    "a computed one's": (lambda s, x: torch.einsum("bld,dn->bldn", x, -s.A.exp()), {"A": (4, 5)}),
}


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", SCALES)
def test_an_einsum_that_sums_over_nothing_has_a_scale_and_no_site(name, example):
    torch.manual_seed(0)
    forward, shapes = SCALES[name]
    plain = module(forward, **{key: parameter(*shape) for key, shape in shapes.items()}).double()
    report = convert(plain, "fa", example=((inputs(),), {}) if example else None).conversion
    assert not report.sites and not report.skipped
    assert [(one.name, one.use) for one in report.others] == [("A", "scale")]


@pytest.mark.parametrize("rule", ["fa", "pfa", "kp", "usf"])
def test_a_weight_that_is_a_scale_elsewhere_sends_the_error_through_itself_there(rule):
    def both(s, x):
        return torch.einsum("bni,oi->bno", x, s.A) + torch.einsum("bno,no->bno", x, s.A)

    torch.manual_seed(0)
    plain = module(both, A=parameter(4, 4)).double()
    x = torch.randn(2, 4, 4).double()
    model = convert(plain, rule)
    F = feedback_of(model, "A").feedback_weight(plain.A)
    (output, below, ours), (plain_output, _, theirs) = gradients(model, x), gradients(plain, x)
    delta = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(output, plain_output)
    assert relative_error(below, delta @ F + delta * plain.A) <= EXACT
    assert relative_error(ours["A"], theirs["A"]) <= EXACT


def test_a_transform_of_an_einsum_is_refused_with_the_way_out():
    model = convert(module(lambda s, x: torch.einsum("bni,oi->bno", x, s.W), W=parameter(5, 4)), "fa")
    with pytest.raises(RuntimeError, match=r"torch.func's transforms do not know feedback weights"):
        grad(lambda x: model(x).sum())(inputs().float())
