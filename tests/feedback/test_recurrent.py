"""Recurrent cells, and fused recurrent layers unrolled, against the formulas written out in float64.

`through(x, W, F)` is `x W^T` whose error goes back through `F`: the value of one product, the derivative of
another. Nothing of the package is in it.
"""

import copy
import itertools

import pytest
import torch
from harness import EXACT, feedback_of, relative_error
from recurrent_formulas import literal_cell
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from pfa_convert import UserError, alignment, convert, couple, revert

CELLS = {
    "lstm": lambda: nn.LSTMCell(4, 3),
    "lstm, no bias": lambda: nn.LSTMCell(4, 3, bias=False),
    "gru": lambda: nn.GRUCell(4, 3),
    "rnn, tanh": lambda: nn.RNNCell(4, 3),
    "rnn, relu": lambda: nn.RNNCell(4, 3, nonlinearity="relu"),
}


def as_states(result):
    return result if isinstance(result, tuple) else (result,)


def given(cell, state):
    return state if isinstance(cell, nn.LSTMCell) else state[0]


def leaves(*shapes):
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def losses(states):
    generator = torch.Generator().manual_seed(7)
    return sum((s * torch.randn(s.shape, generator=generator, dtype=s.dtype)).sum() for s in states)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_over_three_steps_is_the_formula(name):
    cell = CELLS[name]().double()
    model = convert(cell, "fa")
    assert [site.weight for site in model.conversion.sites] == ["weight_ih", "weight_hh"]
    F_ih, F_hh = feedback_of(model, "weight_ih").F0, feedback_of(model, "weight_hh").F0
    results = []
    for own in (True, False):
        torch.manual_seed(1)
        x, *state = leaves((3, 5, 4), (5, 3), (5, 3))
        state, layer = tuple(state[: 2 if isinstance(cell, nn.LSTMCell) else 1]), model if own else cell
        first = state
        for step in x:
            if own:
                state = as_states(layer(step, given(cell, state)))
            else:
                state = literal_cell(layer, step, state, F_ih, F_hh)
        losses(state).backward()
        gradients = {n: p.grad for n, p in layer.named_parameters()}
        results.append((*state, x.grad, *(s.grad for s in first), *gradients.values()))
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CELLS)
def test_a_cells_output_is_the_plain_cells_to_the_last_bit(name, dtype):
    cell = CELLS[name]().to(dtype)
    model = convert(cell, "pfa")
    for shape, with_state in itertools.product([(5, 4), (4,)], [True, False]):
        x = torch.randn(shape, dtype=dtype)
        state = [torch.randn((*shape[:-1], 3), dtype=dtype) for _ in range(2)]
        hx = given(cell, tuple(state[: 2 if isinstance(cell, nn.LSTMCell) else 1])) if with_state else None
        for ours, theirs in zip(as_states(model(x, hx)), as_states(cell(x, hx)), strict=True):
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_under_autocast_is_the_plain_one(name):
    cell = CELLS[name]()
    model, x = convert(cell, "fa"), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(as_states(model(x)), as_states(cell(x)), strict=True):
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


def test_a_cell_refuses_what_the_plain_one_refuses():
    with pytest.raises(ValueError, match="LSTMCell: Expected input to be 1D or 2D, got 3D instead"):
        convert(nn.LSTMCell(4, 3), "fa")(torch.randn(2, 5, 4))


def test_the_weights_of_a_cell_can_have_rules_of_their_own():
    model = convert(nn.GRUCell(4, 3), "fa", overrides=[{"match": "weight_hh", "rule": "bp"}])
    assert model.conversion.counts() == {"fa": 1, "bp": 1}
    assert alignment(model)["weight_hh"]["angle_deg"] == 0 < alignment(model)["weight_ih"]["angle_deg"]
    model(torch.randn(2, 4)).sum().backward()
    assert type(revert(model)) is nn.GRUCell


def test_a_cell_with_weight_norm_sends_its_error_through_the_same_norm():
    cell = weight_norm(nn.RNNCell(4, 3).double(), "weight_hh")
    model = convert(cell, "fa")
    x, h = leaves((2, 4), (2, 3))
    y = model(x, h)
    y.backward(delta := torch.randn(2, 3, dtype=torch.float64))
    F_raw, norms = feedback_of(model, "weight_hh").F0, cell.parametrizations.weight_hh.original0
    F = F_raw * norms / F_raw.norm(dim=1, keepdim=True)
    assert relative_error(h.grad, (delta * (1 - y**2)) @ F) <= EXACT


LAYERS = {
    "lstm": lambda **more: nn.LSTM(4, 3, **more),
    "gru": lambda **more: nn.GRU(4, 3, **more),
    "rnn": lambda **more: nn.RNN(4, 3, **more),
    "rnn, relu": lambda **more: nn.RNN(4, 3, nonlinearity="relu", **more),
    "lstm with a projection": lambda **more: nn.LSTM(4, 3, proj_size=2, **more),
}
FORMS = [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False}]


def inputs_of(layer, form):
    generator = torch.Generator().manual_seed(3)
    shape = {"padded": (6, 5, 4), "unbatched": (6, 4)}.get(form, (5, 6, 4))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if form == "packed":
        lengths = [2, 6, 1, 4, 6]
        return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    if form == "packed in order":
        return pack_sequence([one[:length] for one, length in zip(x, [6, 4, 4, 2, 1], strict=True)])
    return x.transpose(0, 1) if layer.batch_first and form == "padded" else x


def flat(result):
    output, state = result
    output = output.data if hasattr(output, "batch_sizes") else output
    return (output, *as_states(state))


def first_state(layer, form):
    generator = torch.Generator().manual_seed(4)
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    batch = () if form == "unbatched" else (5,)
    h, c = (
        torch.randn(rows, *batch, size, generator=generator, dtype=torch.float64)
        for size in (layer.proj_size or layer.hidden_size, layer.hidden_size)
    )
    return (h, c) if layer.mode == "LSTM" else h


@pytest.mark.parametrize("form", ["padded", "unbatched", "packed", "packed in order"])
@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_unrolled_with_F_equal_to_W_is_the_fused_layer(name, options, form):
    layer = LAYERS[name](**options).double()
    model = convert(layer, "bp", options={"strategy": "explicit"}, unroll=True)
    assert len(model.conversion.sites) == sum(n.startswith("weight") for n, _ in layer.named_parameters())
    for state in (None, first_state(layer, form)):
        x = inputs_of(layer, form)
        results = []
        for one in (model, layer):
            one.zero_grad()
            result = flat(one(x, state))
            losses(result).backward()
            results.append((*result, *(p.grad for p in one.parameters())))
        for ours, theirs in zip(*results, strict=True):
            assert ours.shape == theirs.shape
            assert relative_error(ours, theirs) <= EXACT


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_unrolled_is_the_formula_of_its_cell(name):
    layer = LAYERS[name]().double()
    model = convert(layer, "fa", unroll=True)
    cell = CELLS[{"rnn": "rnn, tanh"}.get(name, name)]().double()
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in layer.state_dict().items()})
    F = {part: feedback_of(model, f"weight_{part}_l0").F0 for part in ("ih", "hh")}
    (x,) = leaves((6, 5, 4))
    losses([model(x)[0]]).backward()
    z = x.detach().clone().requires_grad_()
    state, outputs = (torch.zeros(5, 3).double(),) * (2 if name == "lstm" else 1), []
    for step in z:
        state = literal_cell(cell, step, state, F["ih"], F["hh"])
        outputs.append(state[0])
    losses([torch.stack(outputs)]).backward()
    assert relative_error(x.grad, z.grad) <= EXACT
    for part, own in cell.named_parameters():
        assert relative_error(model.get_parameter(f"{part}_l0").grad, own.grad) <= EXACT


def test_dropout_between_unrolled_layers_is_the_fused_layers():
    layer = nn.GRU(4, 3, num_layers=3, dropout=0.5).double()
    model, x = convert(layer, "fa", unroll=True), torch.randn(6, 5, 4, dtype=torch.float64)
    results = []
    for one in (model, layer):
        torch.manual_seed(5)
        results.append(one(x)[0])
    assert relative_error(*results) <= EXACT
    model.eval(), layer.eval()
    assert relative_error(model(x)[0], layer(x)[0]) <= EXACT


def test_without_unroll_a_fused_layer_is_named_with_what_helps():
    model = convert(nn.Sequential(nn.LSTM(4, 3)), "fa")
    assert not model.conversion.sites and len(model.conversion.skipped) == 2
    assert "unroll=True" in model.conversion.skipped[0].reason
    with pytest.raises(UserError, match="unroll=True"):
        convert(nn.Sequential(nn.LSTM(4, 3)), "fa", strict=True)


def test_unrolling_ends_with_revert_and_changes_nothing_without_gradients():
    plain = nn.Sequential(nn.LSTM(4, 3))
    model, x = convert(plain, "pfa", unroll=True), torch.randn(6, 5, 4)
    with torch.no_grad():
        assert all(map(torch.equal, flat(model(x)), flat(plain(x))))
    back = revert(model)
    assert type(back[0]) is nn.LSTM and vars(back[0]).keys() == vars(plain[0]).keys()
    assert not convert(back, "fa").conversion.sites


def test_an_unrolled_layer_learns_coupled_and_copied():
    model = convert(nn.GRU(4, 3), "pfa", unroll=True)
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    couple(model, optimizer)
    before = model.weight_hh_l0.detach().clone()
    model(torch.randn(6, 5, 4))[0].square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.weight_hh_l0)
    assert model.conversion.settings["unroll"] is True
