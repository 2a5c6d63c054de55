"""Every product with a learned operand: the error goes through F in the place of W, the rest is unchanged.

The reference is PyTorch's own autograd, twice: a plain copy whose weights are set to the feedback weights
gives `dL/dx`, the plain module gives all other gradients.
"""

import copy

import pytest
import torch
from harness import EXACT, relative_error
from test_forward_is_the_users import module, parameter
from torch import nn
from torch.nn import functional
from torchvision.ops import DeformConv2d, deform_conv2d

from pfa_convert import convert
from pfa_convert.alignment import feedback_of

OFFSETS = 0.3 * torch.randn(2, 18, 3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

CASES = {
    "x @ W": (lambda s, x: x @ s.W, {"W": (4, 3)}),
    "W @ x": (lambda s, x: (s.W @ x.mT).mT, {"W": (5, 4)}),
    "matmul, a matrix a head": (lambda s, x: torch.matmul(x, s.W), {"W": (2, 4, 3)}),
    "matmul, W on the left of a batch": (lambda s, x: torch.matmul(s.W, x), {"W": (5, 3)}),
    "matmul with a vector": (lambda s, x: x @ s.w, {"w": (4,)}),
    "x @ W.t()": (lambda s, x: x @ s.W.t(), {"W": (5, 4)}),
    "x @ W.T @ V.mT": (lambda s, x: x @ s.W.T @ s.V.mT, {"W": (5, 4), "V": (3, 5)}),
    "mm": (lambda s, x: torch.mm(x[0], s.W), {"W": (4, 3)}),
    "Tensor.mm": (lambda s, x: s.W.mm(x[0].t()), {"W": (3, 4)}),
    "bmm": (lambda s, x: torch.bmm(x, s.W), {"W": (2, 4, 3)}),
    "mv": (lambda s, x: torch.mv(s.W, x[0, 0]), {"W": (3, 4)}),
    "addmm": (lambda s, x: torch.addmm(s.b, x[0], s.W), {"b": (3,), "W": (4, 3)}),
    "addmm, scaled": (
        lambda s, x: torch.addmm(s.b, x[0], s.W, beta=0.5, alpha=2.0),
        {"b": (3,), "W": (4, 3)},
    ),
    "baddbmm": (lambda s, x: torch.baddbmm(s.b, x, s.W), {"b": (2, 3, 3), "W": (2, 4, 3)}),
    "einsum, a linear map": (lambda s, x: torch.einsum("bni,oi->bno", x, s.W), {"W": (5, 4)}),
    "einsum, a list": (lambda s, x: torch.einsum("bni,hio->bhno", [x, s.W]), {"W": (2, 4, 3)}),
    "einsum, an ellipsis": (lambda s, x: torch.einsum("...i,io", x, s.W), {"W": (4, 3)}),
    "einsum, repeated": (lambda s, x: torch.einsum("bni,nio->bno", x, s.W), {"W": (3, 4, 5)}),
    "tensordot": (lambda s, x: torch.tensordot(x, s.W, dims=([2], [1])), {"W": (5, 4)}),
    "tensordot by a number": (lambda s, x: torch.tensordot(x, s.W, 1), {"W": (4, 5)}),
    "bilinear": (lambda s, x: functional.bilinear(x, x.detach(), s.W, s.b), {"W": (5, 4, 4), "b": (5,)}),
    "convolution": (
        lambda s, x: torch.convolution(x, s.W, s.b, [1], [1], [1], False, [0], 1),
        {"W": (2, 3, 3), "b": (2,)},
    ),
    "aten.mm": (lambda s, x: torch.ops.aten.mm(x[0], s.W), {"W": (4, 3)}),
    "aten.linear.default": (
        lambda s, x: torch.ops.aten.linear.default(x, s.W, s.b),
        {"W": (5, 4), "b": (5,)},
    ),
    "aten.convolution.default": (
        lambda s, x: torch.ops.aten.convolution.default(x, s.W, None, [1], [1], [1], False, [0], 1),
        {"W": (2, 3, 3)},
    ),
    "deform_conv2d": (
        lambda s, x: deform_conv2d(x[None].movedim(1, 0), OFFSETS, s.W, padding=1),
        {"W": (2, 1, 3, 3)},
    ),
    "a view of a vector": (lambda s, x: functional.linear(x, s.w.view(3, 4)), {"w": (12,)}),
    "slices": (
        lambda s, x: functional.linear(x, s.W[:4]) + functional.linear(x, s.W[4:]),
        {"W": (8, 4)},
    ),
    "a multiple": (lambda s, x: functional.linear(x, 2 * s.W), {"W": (3, 4)}),
    "a sum of products of weights": (
        lambda s, x: functional.linear(x, s.W + s.B @ s.A),
        {"W": (5, 4), "B": (5, 2), "A": (2, 4)},
    ),
    "masked by a tensor": (lambda s, x: x @ (s.W * torch.ones(4, 3).tril()), {"W": (4, 3)}),
    "rows of a table": (
        lambda s, x: torch.einsum("bqc,kc->bqk", x, s.W[torch.arange(3)]),
        {"W": (6, 4)},
    ),
    "a learned operand given by keyword": (lambda s, x: torch.matmul(input=x, other=s.W), {"W": (4, 3)}),
    "a part of a weight, then an einsum": (
        lambda s, x: torch.einsum("bni,oi->bno", functional.linear(x, s.W.chunk(3)[2]), s.V),
        {"W": (12, 4), "V": (4, 4)},
    ),
}


def inputs():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def made(name):
    torch.manual_seed(0)
    forward, shapes = CASES[name]
    return module(forward, **{key: parameter(*shape) for key, shape in shapes.items()}).double()


def gradients(model, x):
    """Return the output, `dL/dx` and the Parameters' gradients for a fixed error at the output."""
    x = x.clone().requires_grad_()
    output = model(x)
    generator = torch.Generator().manual_seed(2)
    output.backward(torch.randn(output.shape, generator=generator, dtype=output.dtype))
    return output, x.grad, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["W @ x", "matmul, a matrix a head", "einsum, repeated"])
def test_a_product_compiles_in_one_graph(name):
    model, x = convert(made(name), "pfa"), inputs()
    output, below, learned = gradients(copy.deepcopy(model), x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = gradients(compiled, x)
    assert torch.equal(found[0], output) and relative_error(found[1], below) <= EXACT
    assert relative_error(found[2]["_orig_mod.W"], learned["W"]) <= EXACT


@pytest.mark.parametrize("rule", ["fa", "pfa", "kp", "usf"])
@pytest.mark.parametrize("name", CASES)
def test_the_error_goes_through_F_in_the_place_of_W(name, rule):
    plain, x = made(name), inputs()
    model = convert(plain, rule, options={"expansion": 3} if rule == "pfa" else {})
    applied = {site.weight for site in model.conversion.sites}
    assert applied == {n for n, _ in plain.named_parameters() if n != "b"} and not model.conversion.skipped
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        for weight in applied:
            F = feedback_of(model, weight).feedback_weight(plain.get_parameter(weight))
            twin.get_parameter(weight).copy_(F)
    output, below, ours = gradients(model, x)
    plain_output, plain_below, theirs = gradients(plain, x)
    assert torch.equal(output, plain_output)
    assert relative_error(below, gradients(twin, x)[1]) <= EXACT < relative_error(below, plain_below)
    last = name == "x @ W.T @ V.mT"  # below the last product the first weight's own error has changed
    for weight in theirs if not last and "part" not in name and "sum" not in name else ():
        assert relative_error(ours[weight], theirs[weight]) <= EXACT, weight


@pytest.mark.parametrize("name", CASES)
def test_with_F_equal_to_W_every_gradient_is_backpropagations(name):
    plain, x = made(name), inputs()
    model = convert(plain, "bp", options={"strategy": "explicit"})
    (_, below, ours), (_, plain_below, theirs) = gradients(model, x), gradients(plain, x)
    assert relative_error(below, plain_below) <= EXACT and ours.keys() == theirs.keys()
    assert all(relative_error(ours[weight], theirs[weight]) <= EXACT for weight in theirs)


@pytest.mark.parametrize("name", ["x @ W", "matmul, a matrix a head", "einsum, repeated", "tensordot"])
def test_B_mixes_outputs_of_the_same_matrix_alone(name):
    """`B` is `(matrices, N_out, N_mid)`, wherever in the weight the outputs stand."""
    model = convert(made(name), "pfa", options={"expansion": 2, "strategy": "fused"})
    shape = {
        "x @ W": (1, 3, 6),
        "matmul, a matrix a head": (2, 3, 6),
        "einsum, repeated": (3, 5, 10),
        "tensordot": (1, 5, 10),
    }[name]
    assert model.feedback_of_W.B.shape == shape


def test_nn_bilinear_and_torchvisions_deformable_convolution_are_sites():
    torch.manual_seed(0)
    for plain, arguments in [
        (nn.Bilinear(4, 3, 5).double(), (torch.randn(2, 4).double(), torch.randn(2, 3).double())),
        (DeformConv2d(2, 3, 3, padding=1).double(), (torch.randn(1, 2, 3, 4).double(), OFFSETS[:1])),
    ]:
        model = convert(plain, "fa")
        assert [site.weight for site in model.conversion.sites] == ["weight"]
        x, *others = arguments
        x = x.clone().requires_grad_()
        output = model(x, *others)
        assert torch.equal(output, plain(x, *others))
        output.sum().backward()
        twin, through = copy.deepcopy(plain), x.detach().clone().requires_grad_()
        with torch.no_grad():
            twin.weight.copy_(model.feedback_of_weight.F0)
        twin(through, *others).sum().backward()
        assert relative_error(x.grad, through.grad) <= EXACT


def test_a_mixture_of_weights_sends_its_error_through_the_mixture_of_feedback_weights():
    """As the experts of `efficientnet_cc_*`: a weight that activations choose, applied to activations."""

    def mixed(self, x):
        routing = x.mean((0, 1))[:2].softmax(0)
        return functional.linear(x, (routing[None] @ self.W).view(3, 4))

    torch.manual_seed(0)
    plain = module(mixed, W=parameter(2, 12)).double()
    model, twin = convert(plain, "fa"), copy.deepcopy(plain)
    with torch.no_grad():
        twin.W.copy_(model.feedback_of_W.F0)
    x = inputs()
    _, below, ours = gradients(model, x)
    assert relative_error(below, gradients(twin, x)[1]) <= EXACT
    assert relative_error(ours["W"], gradients(plain, x)[2]["W"]) <= EXACT


def windows(table, size):
    """Rows of a table, as code that looks at sizes takes them; torch.fx does not look inside."""
    return table[torch.arange(int(size)) % len(table)]


torch.fx.wrap("windows")


def test_rows_that_an_untraced_function_takes_from_a_table_are_still_a_weight():
    def relative(self, x):
        return torch.einsum("bqc,kc->bqk", x, windows(self.table, x.shape[1]))

    plain = module(relative, table=parameter(5, 4)).double()
    model, x = convert(plain, "fa"), inputs()
    assert [(site.name, site.kind) for site in model.conversion.sites] == [("table", "einsum()")]
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        twin.table.copy_(model.feedback_of_table.F0)
    assert relative_error(gradients(model, x)[1], gradients(twin, x)[1]) <= EXACT


@pytest.mark.parametrize("example", [False, True])
def test_an_experts_weight_that_activations_choose_is_a_site(example):
    def chosen(self, x):
        return functional.linear(x, self.experts[x.sum((0, 1)).argmax() % 2])

    torch.manual_seed(0)
    plain, x = module(chosen, experts=parameter(2, 5, 4)).double(), inputs()
    model = convert(plain, "fa", example=((x,), {}) if example else None)
    assert [site.name for site in model.conversion.sites] == ["experts"] and not model.conversion.others
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        twin.experts.copy_(model.feedback_of_experts.F0)
    (_, below, ours), (_, _, theirs) = gradients(model, x), gradients(plain, x)
    assert relative_error(below, gradients(twin, x)[1]) <= EXACT
    assert relative_error(ours["experts"], theirs["experts"]) <= EXACT


def test_a_weight_that_activations_modulate_sends_its_error_through_the_modulated_feedback_weight():
    """As in StyleGAN 2: for each image a weight, scaled by its style and normalised."""

    def modulated(self, x):
        style = x.mean(1).detach()
        W = self.W * style[:, None, :, None]
        W = W * (W.square().sum((2, 3), keepdim=True) + 1e-8).rsqrt()
        return functional.conv1d(x.mT.reshape(1, 8, 3), W.view(10, 4, 1), groups=2)

    torch.manual_seed(0)
    plain, x = module(modulated, W=parameter(1, 5, 4, 1)).double(), inputs()
    model, twin = convert(plain, "fa"), copy.deepcopy(plain)
    assert [site.name for site in model.conversion.sites] == ["W"]
    F = feedback_of(model, "W").F0
    with torch.no_grad():
        style = x.mean(1)
        demodulated = (plain.W * style[:, None, :, None]).square().sum((2, 3), keepdim=True) + 1e-8
        effective = (F * style[:, None, :, None] * demodulated.rsqrt())[..., 0]
    error = torch.randn(1, 10, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.einsum("bon,boi->bni", error.view(2, 5, 3), effective)
    _, below, ours = gradients(model, x)
    assert relative_error(below, expected) <= EXACT
    assert relative_error(ours["W"], gradients(twin, x)[2]["W"]) <= EXACT


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_an_embedding_are_an_input_and_no_weight(tied):
    def language(self, tokens):
        return functional.linear(self.embedding[tokens] @ self.W, self.embedding if tied else self.head)

    torch.manual_seed(0)
    plain = module(language, embedding=parameter(6, 4), W=parameter(4, 4), head=parameter(6, 4)).double()
    model, twin = convert(plain, "fa"), copy.deepcopy(plain)
    last = "embedding" if tied else "head"
    assert {site.name for site in model.conversion.sites} == {"W", last}
    tokens = torch.tensor([[0, 3, 5], [1, 1, 2]])
    outputs = [one(tokens) for one in (model, plain)]
    assert torch.equal(*outputs)
    outputs[0].sum().backward()
    with torch.no_grad():
        error = torch.ones(2, 3, 6).double() @ feedback_of(model, last).F0
        expected = torch.einsum("bni,bno->io", twin.embedding[tokens], error)
    assert relative_error(model.W.grad, expected) <= EXACT


@pytest.mark.parametrize("shape", [(1,), (5, 1), ()])
@pytest.mark.parametrize("example", [False, True])
def test_a_learned_scale_of_a_weight_is_no_site_and_scales_the_feedback_weight(shape, example):
    scaled = module(lambda s, x: functional.linear(x, s.W * s.g), W=parameter(5, 4), g=parameter(*shape))
    plain, x = scaled.double(), inputs()
    model = convert(plain, "fa", example=((x,), {}) if example else None)
    assert [site.name for site in model.conversion.sites] == ["W"] and not model.conversion.skipped
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        twin.W.copy_(model.feedback_of_W.F0)
    (_, below, ours), (_, _, theirs) = gradients(model, x), gradients(plain, x)
    assert relative_error(below, gradients(twin, x)[1]) <= EXACT
    assert all(relative_error(ours[name], theirs[name]) <= EXACT for name in theirs)


def test_a_table_that_is_added_is_no_site_and_its_use_is_named():
    plain = module(lambda s, x: functional.linear(x + s.table, s.W), W=parameter(5, 4), table=parameter(3, 4))
    report = convert(plain, "fa").conversion
    assert [site.name for site in report.sites] == ["W"]
    assert [(other.name, other.use) for other in report.others] == [("table", "added")]
