"""The option `block_size`: a block-diagonal B, by the formula with the whole B written out."""

import copy
import math

import pytest
import torch
from harness import EXACT, cases, error_below, feedback_of, problem, relative_error
from torch import nn

from pfa_convert import alignment, convert, couple

SINGLE = [case for case in cases() if isinstance(case.layer, (nn.Linear, nn.modules.conv._ConvNd))]


def whole(B, groups):
    """Return `B` with one matrix a group, zeros outside of its blocks."""
    return torch.stack([torch.block_diag(*blocks) for blocks in B.reshape(groups, -1, *B.shape[1:])])


@pytest.mark.parametrize("strategy", ["fused", "explicit", "collapsed"])
@pytest.mark.parametrize("case", SINGLE, ids=lambda case: case.name)
def test_the_error_goes_back_through_a_block_diagonal_B(case, strategy):
    plain = copy.deepcopy(case.layer).double()
    options = {"block_size": 2, "expansion": 3, "strategy": "fused" if strategy == "collapsed" else strategy}
    layer = convert(plain, "pfa", options=options, seed=1)
    state, layout = feedback_of(layer).named_state(), feedback_of(layer).pathway.layout
    a_group = layout.outputs // layout.groups
    assert state.B.shape[1] == (2 if a_group % 2 == 0 else 1)
    B = whole(state.B, layout.groups)
    R = layout.with_outputs(layout.groups * B.shape[2]).to_matrix(state.R)
    with torch.no_grad():
        plain.weight.copy_(layout.from_matrix(B @ R))  # backpropagation through F is feedback through it
    if strategy == "collapsed":
        couple(layer, torch.optim.SGD(layer.parameters(), lr=0.1), collapse=True)
        assert "G" in dict(feedback_of(layer).named_buffers())
    x, delta = problem(case)
    assert relative_error(error_below(layer, x, delta), error_below(plain, x, delta)) < EXACT


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: case.name)
def test_the_closed_form_follows_the_literal_R(case):
    literal, closed = (
        convert(
            copy.deepcopy(case.layer).double(),
            "pfa",
            options={"block_size": 2, "strategy": "fused", "law": "uniform"},
            seed=4,
        )
        for _ in range(2)
    )
    optimizers = [
        torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
        for layer in (literal, closed)
    ]
    couple(literal, optimizers[0])
    couple(closed, optimizers[1], collapse=True)
    x, _ = problem(case)
    for _ in range(30):
        for layer, optimizer in zip((literal, closed), optimizers, strict=True):
            layer(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert relative_error(closed.weight, literal.weight) < EXACT
    F, expected = (feedback_of(layer).feedback_weight(layer.weight) for layer in (closed, literal))
    assert relative_error(F, expected) < 1e-10


def test_the_path_angle_is_that_of_a_whole_B_and_the_product_is_cheaper():
    layer = nn.Linear(300, 192)
    theory = math.degrees(math.atan(10**-0.5))
    for size, elements in ((None, 192 * 192), (64, 192 * 64), (50, 192 * 48)):
        converted = convert(layer, "pfa", options={"block_size": size, "aligned": True})
        assert feedback_of(converted).named_state().G.numel() == elements
        assert alignment(converted)["weight"]["angle_deg"] == pytest.approx(theory, abs=1.0)


def test_blocks_of_a_direct_draw_have_the_law_of_a_whole_draw_of_their_size():
    """G's diagonal has mean 1 and variance 2 / N_mid, its other entries 0 and 1 / N_mid; F_0 is Xavier's."""
    layer, middle = nn.Linear(120, 600), 4 * 10
    feedback = feedback_of(convert(layer, "pfa", options={"block_size": 10, "expansion": 4}))
    G = feedback.named_state().G.double()
    diagonal = torch.diagonal(G, dim1=1, dim2=2)
    rows, columns = torch.tril_indices(10, 10, -1)
    other = G[:, rows, columns]
    assert diagonal.mean().item() == pytest.approx(1, abs=4 * math.sqrt(2 / middle / 600))
    assert diagonal.var().item() == pytest.approx(2 / middle, rel=0.25)
    assert other.var().item() == pytest.approx(1 / middle, rel=0.1)
    # R_0 is Xavier's for 2,400 middle neurons, and E |B R_0|^2 = |R_0|^2 / N_mid for each output
    F = feedback.feedback_weight(layer.weight)
    assert F.std().item() == pytest.approx(math.sqrt(2 / (120 + 4 * 600)), rel=0.05)


@pytest.mark.parametrize("rule", ["pfa", "pfa-o", "kp"])
@pytest.mark.parametrize("strategy", ["collapsed", "fused"])
@pytest.mark.parametrize("options", [{}, {"feedback_density": 0.5}], ids=str)
def test_the_first_F_has_the_norm_of_the_weight(rule, strategy, options):
    layer = nn.Conv2d(6, 10, 3)
    nn.init.normal_(layer.weight, std=0.02)
    for norm, ratio in (("xavier", None), ("weight", 1.0)):
        converted = convert(layer, rule, options={**options, "strategy": strategy, "start_norm": norm})
        F = feedback_of(converted).feedback_weight(layer.weight)
        if ratio:
            assert (F.norm() / layer.weight.norm()).item() == pytest.approx(ratio, rel=1e-4)
            assert alignment(converted)["weight"]["angle_deg"] > 60
        else:
            assert F.norm() > 1.2 * layer.weight.norm()
    nn.init.zeros_(layer.weight)
    F = feedback_of(convert(layer, rule, options={"start_norm": "weight"})).feedback_weight(layer.weight)
    assert F.norm() > 0
