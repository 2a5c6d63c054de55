"""The account of a run: what the dispatcher saw of every Parameter, also where a model tries to hide it."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pfa_convert import convert, uses, verify
from pfa_convert.audit.verify import verify_both_modes


def P(*shape):
    return nn.Parameter(torch.randn(*shape))


def module(forward, **attributes):
    made = type("Made", (nn.Module,), {"forward": forward})()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def status(account):
    return {entry.name: entry.status for entry in account.entries}


def x(*shape):
    return torch.randn(*(shape or (3, 4)), generator=torch.Generator().manual_seed(1))


@torch.library.custom_op("pfa_tests::applied_inside", mutates_args=())
def applied_inside(x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy() @ W.detach().numpy())


@applied_inside.register_fake
def _(x, W):
    return x @ W


def through_numpy(s, x):
    return x @ torch.from_numpy(s.W.detach().numpy())


def copied_into_a_buffer(s, x):
    s.b.copy_(s.W)
    return x @ s.b


def assembled(s, x):
    W = x.new_zeros(4, 4)
    W[:2], W[2:] = s.W[:2], s.W[2:]
    return x @ W


def fast_weights(s, x):
    return x @ (s.W + x.t() @ x)


def modulated(s, x):
    kernel = s.K[None] * (1 + x.mean(1))[:, None, None, None, None]  # a kernel for each example
    image = x[:, :, None, None].expand(3, 4, 5, 5).reshape(1, 12, 5, 5)
    return functional.conv2d(image, kernel.reshape(6, 4, 3, 3), groups=3)


def modulated_rows(s, x):
    return x @ (s.W * x.mean(0)[:, None])


def without_gradient_for_the_weight(s, x):
    with torch.no_grad():
        W = s.W * 1.0
    return x @ W


def chosen(s, x):
    return x @ torch.where(x.mean(0)[:, None] > 0, s.W, -s.W)


def heads(s, x):
    return functional.scaled_dot_product_attention(x[None, None], s.W[None, None], s.V[None, None])


class OwnFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return x @ W

    @staticmethod
    def backward(ctx, delta):
        x, W = ctx.saved_tensors
        return delta @ W.t(), x.t() @ delta


HIDDEN = {
    "x @ W": (lambda s, x: x @ s.W, "W"),
    "W @ x": (lambda s, x: (s.W @ x.t()).t(), "W"),
    "matmul of a batch": (lambda s, x: torch.matmul(x[:, None], s.W), "W"),
    "mm": (lambda s, x: torch.mm(x, s.W), "W"),
    "addmm": (lambda s, x: torch.addmm(s.b[0], x, s.W), "W"),
    "bmm": (lambda s, x: torch.bmm(x[None], s.W[None]), "W"),
    "baddbmm": (lambda s, x: torch.baddbmm(s.b[None, :3], x[None], s.W[None]), "W"),
    "mv": (lambda s, x: torch.mv(s.W, x[0]), "W"),
    "dot": (lambda s, x: torch.dot(x[0], s.w), "w"),
    "einsum": (lambda s, x: torch.einsum("bi,oi->bo", x, s.W), "W"),
    "einsum, three operands": (lambda s, x: torch.einsum("bi,oi,bo->b", x, s.W, x), "W"),
    "tensordot": (lambda s, x: torch.tensordot(x, s.W, dims=([1], [0])), "W"),
    "bilinear": (lambda s, x: functional.bilinear(x, x, s.T), "T"),
    "torch.convolution": (
        lambda s, x: (
            torch.convolution(x[None], s.W[:, :, None], None, [1], [0], [1], False, [0], 1)
            if len(x) == 4
            else torch.convolution(x.t()[None], s.W[:, :, None], None, [1], [0], [1], False, [0], 1)
        ),
        "W",
    ),
    "aten.mm": (lambda s, x: torch.ops.aten.mm.default(x, s.W), "W"),
    "a view of a vector": (lambda s, x: functional.linear(x, s.v.view(4, 4)), "v"),
    "a slice": (lambda s, x: functional.linear(x, s.W[:2]), "W"),
    "a multiple": (lambda s, x: functional.linear(x, 2 * s.W), "W"),
    "W.data": (lambda s, x: x @ s.W.data, "W"),
    "W.detach()": (lambda s, x: x @ s.W.detach(), "W"),
    "another type": (lambda s, x: x.double() @ s.W.double(), "W"),
    "a weight that a norm divides": (lambda s, x: x @ (s.W / s.W.norm()), "W"),
    "as_strided": (lambda s, x: x @ torch.as_strided(s.W, (4, 4), (1, 4)), "W"),
    "a row table that is looked up": (lambda s, x: x @ s.W[torch.arange(4)], "W"),
    "dropped at random": (lambda s, x: x @ functional.dropout(s.W, 0.5, True), "W"),
    "multiplied, then summed": (lambda s, x: (x[:, :, None] * s.W[None]).sum(1), "W"),
    "multiplied, then averaged": (lambda s, x: (s.W[None] * x[:, None]).mean(-1), "W"),
    "noise @ W": (lambda s, x: x + torch.randn(3, 4) @ s.W, "W"),
    "learned keys": (heads, "W"),
    "learned values": (heads, "V"),
    "an operation of another library": (lambda s, x: torch.ops.pfa_tests.applied_inside(x, s.W), "W"),
    "an autograd function of the user's": (lambda s, x: OwnFunction.apply(x, s.W), "W"),
    "through numpy": (through_numpy, "W"),
    "copied into a buffer": (copied_into_a_buffer, "W"),
    "assembled in new memory": (assembled, "W"),
    "no gradient for the weight": (without_gradient_for_the_weight, "W"),
    "changed by activations": (fast_weights, "W"),
    "scaled by activations": (modulated_rows, "W"),
    "a modulated kernel": (modulated, "K"),
    "chosen by activations": (chosen, "W"),
    "inside reentrant checkpointing": (
        lambda s, x: checkpoint(lambda y: y @ s.W, x.requires_grad_(), use_reentrant=True),
        "W",
    ),
    "a solved system": (lambda s, x: torch.linalg.solve(s.W, x.t()), "W"),
    "under vmap": (lambda s, x: torch.vmap(lambda row: s.W @ row)(x), "W"),
}


def hidden(name):
    torch.manual_seed(0)
    made = module(HIDDEN[name][0], W=P(4, 4), V=P(4, 4), T=P(5, 4, 4), K=P(2, 4, 3, 3), v=P(16), w=P(4))
    made.register_buffer("b", torch.zeros(4, 4))
    return made


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.filterwarnings("ignore:.*")
def test_every_product_without_feedback_is_unaccounted(name):
    weight = HIDDEN[name][1]
    account = verify(hidden(name), x())
    assert not account.balanced and status(account)[weight] == "unaccounted", account
    (entry,) = [entry for entry in account.unaccounted if entry.name == weight]
    assert "without feedback" in entry.what and "test_verify.py" in entry.what


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention])
@pytest.mark.parametrize("frozen", [True, False])
def test_layers_that_apply_their_weights_in_one_operation_are_seen(kind, training, frozen):
    layer = kind(4, 2, batch_first=True) if kind is nn.MultiheadAttention else kind(4, 2, 2)
    attention = kind is nn.MultiheadAttention
    run = module(lambda s, x: s.layer(x, x, x) if attention else s.layer(x), layer=layer).train(training)
    run.requires_grad_(not frozen)
    account = verify(run, x(2, 3, 4))
    matrices = {name for name, parameter in run.named_parameters() if parameter.dim() > 1}
    assert {entry.name for entry in account.unaccounted} == matrices
    report = verify(convert(run, "fa"), x(2, 3, 4))
    assert report.balanced and set(status(report).values()) == ({"site"} if attention else {"skipped"})


OTHER_USES = {
    "embedding": (lambda s, x: s.table(x.argmax(1)), {"table": nn.Embedding(5, 4)}),
    "looked up": (lambda s, x: s.W[x.argmax(1)] * 1.0, {"W": P(4, 4)}),
    "norm": (lambda s, x: functional.layer_norm(x, (3, 4), s.W), {"W": P(3, 4)}),
    "scale": (lambda s, x: x[None] * s.W, {"W": P(5, 1, 4)}),
    "added": (lambda s, x: x.expand(2, 3, 4) + s.W, {"W": P(3, 4)}),
    "learned token": (lambda s, x: torch.cat([s.W, x]), {"W": P(1, 4)}),
    "slope": (lambda s, x: functional.prelu(x, s.W.flatten()), {"W": P(2, 2)}),
    "distance": (lambda s, x: torch.cdist(x, s.W), {"W": P(30, 4)}),
    "input of a layer": (lambda s, x: s.layer(s.W) + x.mean(), {"W": P(3, 4), "layer": nn.Linear(4, 4)}),
    "applied without gradients": (torch.no_grad()(lambda s, x: x @ s.W), {"W": P(4, 4)}),
}


@pytest.mark.parametrize("use", OTHER_USES)
def test_what_is_no_linear_map_is_named_with_its_use(use):
    forward, attributes = OTHER_USES[use]
    made = module(forward, **attributes)
    skipped = ("applied without gradients", "distance")  # by a conversion's report
    account = verify(made if use in skipped else convert(made, "fa"), x())
    entries = {entry.name: entry for entry in account.entries}
    name = "table.weight" if use == "embedding" else "W"
    assert account.balanced and entries[name].status == "no linear map" and use in entries[name].what


def test_products_among_weights_compute_a_weight_and_are_sites_only_together():
    def forward(s, x):
        return functional.linear(x, s.W + s.B @ s.A) * s.unused.shape[0]

    plain = module(forward, W=P(4, 4), B=P(4, 2), A=P(2, 4), unused=P(2, 2))
    assert {entry.name for entry in verify(plain, x()).unaccounted} == {"W", "B", "A"}
    account = verify(convert(plain, "fa"), x())
    assert account.balanced
    assert status(account) == {"W": "site", "B": "site", "A": "site", "unused": "not reached"}


def test_the_gain_of_weight_norm_is_part_of_a_weight():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    account = verify(convert(nn.Sequential(layer), "fa"), x())
    assert account.balanced and account.share == pytest.approx(100 * 12 / 15)
    statuses = status(account)
    assert statuses["0.parametrizations.weight.original0"] == "no linear map"
    assert statuses["0.parametrizations.weight.original1"] == "site"


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_the_gain_of_a_normalised_weight_of_a_modules_own_is_no_linear_map_of_its_own(rule):
    plain = module(lambda s, x: x @ s.W, W=P(4, 4))
    nn.utils.parametrizations.weight_norm(plain, "W")
    account = verify(convert(plain, rule), x())
    assert account.balanced
    statuses = status(account)
    assert statuses == {
        "parametrizations.W.original0": "no linear map",
        "parametrizations.W.original1": "site",
    }


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_what_the_report_calls_a_scale_is_told_of_where_it_is_applied_by_itself(rule):
    """By a flag that is set later."""

    def forward(s, x):
        if s.alone:
            return x @ s.V + x @ s.gain.t()
        return x @ (s.gain * s.V)

    model = convert(module(forward, V=P(4, 4), gain=P(1, 4), alone=False), rule)
    assert verify(model, x()).balanced
    model.alone = True
    assert [entry.name for entry in verify(model, x()).unaccounted] == ["gain"]


def test_a_site_that_no_linear_map_applied_is_none_in_this_run():
    """A module of the user's whose forward, by a flag set later, uses its weight as a scale."""
    model = convert(module(lambda s, x: x * s.W if s.scale else x @ s.W, W=P(4, 4), scale=False), "fa")
    assert status(verify(model, x(2, 4, 4))) == {"W": "site"}
    model.scale = True
    (entry,) = verify(model, x(2, 4, 4)).entries
    assert str(entry) == "no linear map: scale, though the report calls it a site"


def test_a_site_that_is_also_used_without_feedback_is_unaccounted():
    """In a hook, which no conversion sees: once with feedback and once without."""
    model = convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "fa")
    assert verify(model, x()).balanced
    model[0].register_forward_hook(lambda layer, inputs, output: output + inputs[0] @ layer.weight)
    account = verify(model, x())
    assert [entry.name for entry in account.unaccounted] == ["0.weight"] and account.share == 0
    ways = {use.way for use in account.uses if use.linear}
    assert ways == {"feedback", "plain"}


def test_another_weight_inside_the_feedback_pass_is_not_taken_for_the_site():
    """An operation that sneaks a second weight into the pass of the first one."""

    class Sly(nn.Linear):
        pass

    model = convert(nn.Sequential(Sly(4, 4)), "fa")
    other = P(4, 4)
    model.other = other
    original = functional.linear

    def sly(x, W, b=None):
        return original(x, W, b) + x @ other

    try:
        functional.linear = torch.nn.functional.linear = sly
        account = verify(model, x())
    finally:
        functional.linear = torch.nn.functional.linear = original
    assert status(account) == {"0.weight": "site", "other": "unaccounted"}


def test_a_layer_that_is_replaced_after_the_conversion_is_no_site():
    model = convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "fa")
    model[1] = nn.Linear(4, 5)
    assert status(verify(model, x())) == {"0.weight": "site", "1.weight": "skipped"}


def test_sites_with_backpropagation_are_sites_and_what_a_run_does_not_reach_is_said():
    plain = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    plain.forward = lambda x: plain["b"](plain["a"](x))
    model = convert(module(lambda s, x: s.b(s.a(x)), **plain), "fa", overrides=[{"match": "a", "rule": "bp"}])
    account = verify(model, x())
    assert account.balanced
    assert [(e.name, e.status, e.what) for e in account.entries] == [
        ("a.weight", "site", "bp"),
        ("b.weight", "site", "fa"),
        ("c.weight", "not reached", ""),
    ]


@pytest.mark.parametrize("rule", ["fa", "pfa", "pfa-o", "kp", "usf", "brsf", "wm", "sa", "dfa"])
@pytest.mark.parametrize("kind", ["layers", "products"])
def test_every_rule_balances(rule, kind):
    layers = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 2))
    products = module(
        lambda s, x: torch.einsum("bi,hoi->bo", x.flatten(1) @ s.W, s.V), W=P(12, 4), V=P(2, 3, 4)
    )
    model = convert(layers if kind == "layers" else products, rule)
    account = verify(model, x(2, 3, 4))
    assert account.balanced and account.share == 100 and set(status(account).values()) == {"site"}
    assert not [use for use in account.uses if use.linear and use.way == "plain" and rule != "dfa"]


@pytest.mark.parametrize("strategy", ["explicit", "fused", "collapsed"])
def test_every_strategy_balances(strategy):
    model = nn.Sequential(
        nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(16, 2), module(lambda s, x: x @ s.W, W=P(2, 3))
    )
    account = verify(convert(model, "pfa", options={"strategy": strategy}), x(2, 3, 4))
    assert account.balanced and account.share == 100


def test_a_converted_part_of_a_model_has_its_sites_and_the_rest_none():
    whole = nn.Sequential(convert(nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)), "fa"), nn.Identity())
    whole[0].forward = lambda x: whole[0][1](whole[0][0](x))[0]
    whole.append(nn.Linear(4, 2))
    assert status(verify(whole, x())) == {
        "0.0.weight": "site",
        "0.1.weight_ih_l0": "skipped",
        "0.1.weight_hh_l0": "skipped",
        "2.weight": "unaccounted",
    }


def test_a_tied_weight_is_one_entry_and_parameters_in_one_storage_are_told_apart():
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert status(verify(convert(tied, "fa"), x())) == {"0.weight": "site"}
    flat = torch.randn(32)
    one, two = nn.Parameter(flat[:16].view(4, 4)), nn.Parameter(flat[16:].view(4, 4))
    account = verify(module(lambda s, x: x @ s.one + s.two[:3], one=one, two=two), x())
    assert status(account) == {"one": "unaccounted", "two": "no linear map"}


class Effects(nn.Module):
    """Changes all that it can."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.W = nn.BatchNorm1d(4), nn.Dropout(0.5), P(4, 4)
        self.register_buffer("memory", torch.zeros(4))
        self.calls, self.last = 0, None

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.memory += x.mean(0).detach()
        self.W.data.mul_(0.5)
        self.norm = nn.BatchNorm1d(4)
        y = self.drop(self.norm(x)) @ self.W
        x.add_(1)
        return y


def test_the_model_its_input_and_the_random_numbers_are_left_as_they_were():
    model, given = Effects(), x()
    state, inputs, draws = copy.deepcopy(model.state_dict()), given.clone(), torch.get_rng_state()
    norm = model.norm
    assert status(verify_both_modes(model, given)) == {"W": "unaccounted"}
    assert model.calls == 0 and model.last is None and model.norm is norm and model.training
    assert torch.equal(given, inputs) and torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_is_left_as_it_was_after_an_error_too():
    model = module(lambda s, x: s.l(x) @ s.fails(), l=nn.BatchNorm1d(4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AttributeError):
        verify(model, x())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4), nn.GRU(4, 2)
    )


def test_the_account_is_the_same_without_memory():
    real = verify(convert(network(), "pfa"), x(2, 3, 5, 5))
    meta = verify(convert(network().to("meta"), "pfa"), torch.empty(2, 3, 5, 5, device="meta"))
    with FakeTensorMode():
        fake = verify(convert(network(), "fa", inplace=True), torch.empty(2, 3, 5, 5))
    assert status(real) == status(meta) == status(fake) and "skipped" in status(real).values()


def test_a_compiled_part_runs_eagerly_and_is_seen():
    model = module(lambda s, x: s.part(x), part=torch.compile(nn.Linear(4, 4)))
    assert list(status(verify(model, x())).values()) == ["unaccounted"]


def test_casts_that_autocast_has_kept_are_seen():
    linear = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        linear(x())
        assert status(verify(linear, x())) == {"weight": "unaccounted"}
        model = convert(linear, "fa")
        model(x())
        assert status(verify(model, x())) == {"weight": "site"}


def test_the_account_reads_and_travels():
    account = verify(hidden("x @ W"), x())
    data = account.to_dict()
    assert data["balanced"] is False and {e["name"] for e in data["entries"]} >= {"W", "V"}
    assert "the account does NOT balance" in str(account)
    assert "W  " in str(account) and "mm (mat2) applies it without feedback" in str(account)


def test_uses_of_a_plain_model_name_operation_operand_module_and_line():
    outer = nn.Sequential(hidden("x @ W"), nn.Linear(4, 2))
    found = [use for use in uses(outer, x()) if use.linear]
    assert [(use.parameters, use.operation, use.operand, use.module) for use in found] == [
        (("0.W",), "mm", "mat2", "0"),
        (("1.weight",), "addmm", "mat2", "1"),
    ]
    assert found[0].line.startswith("test_verify.py:") and {use.way for use in found} == {"plain"}
