"""Stacks of matrices that are computed from others, as bases are combined to one matrix for each relation.

Basis decomposition is that of Schlichtkrull et al. 2018 (RGCN, equation 3), `W_r = sum_b a_rb V_b`.
"""

import pytest
import torch
from harness import EXACT, feedback_of, relative_error
from test_forward_is_the_users import parameter
from torch import nn

from pfa_convert import convert, verify

R, B, N_IN, N_OUT = 3, 2, 4, 5


def of_bmm(a, V):
    """Combine the bases in front of each output."""
    return torch.bmm(a.t()[:, :, None], V.flatten(1)[:, None]).sum(0).view(R, N_IN, N_OUT)


COMBINED = {
    "einsum": lambda a, V: torch.einsum("rb,bio->rio", a, V),
    "einsum, implicit": lambda a, V: torch.einsum("ab,bcd", a, V),
    "einsum of a list": lambda a, V: torch.einsum("rb,bio->rio", [a, V]),
    "tensordot": lambda a, V: torch.tensordot(a, V, dims=1),
    "tensordot by lists": lambda a, V: torch.tensordot(a, V, dims=([1], [0])),
    "stored the other way": lambda a, V: torch.einsum("rb,bio->roi", a, V).transpose(1, 2),
    "flattened": lambda a, V: (a @ V.flatten(1)).view(R, N_IN, N_OUT),
    "flattened, -1": lambda a, V: torch.matmul(a, V.reshape(B, -1)).reshape(-1, N_IN, N_OUT),
    "scaled before": lambda a, V: torch.einsum("rb,bio->rio", a / R, 2 * V),
    "scaled afterwards": lambda a, V: torch.einsum("rb,bio->rio", a, V) / B,
    "bmm": of_bmm,
}
FACTORS = {"scaled before": 2 / R, "scaled afterwards": 1 / B}
AS_THEY_ARE = {"flattened", "flattened, -1", "bmm"}
"""Where the bases' own dimensions are lost on the way, they count as a weight of their shape."""


class Relations(nn.Module):
    """Applies to each example the matrix of its relation."""

    def __init__(self, combine):
        super().__init__()
        self.combine = combine
        self.below = nn.Linear(3, N_IN)
        self.a, self.V = parameter(R, B), parameter(B, N_IN, N_OUT)

    def forward(self, x, relation):
        W = self.combine(self.a, self.V)
        return torch.bmm(self.below(x)[:, None], W[relation])[:, 0]


def given():
    torch.manual_seed(1)
    return torch.randn(6, 3, dtype=torch.float64), torch.tensor([2, 0, 1, 1, 0, 2])


@pytest.mark.parametrize("rule", ["fa", "kp", "usf", "pfa", "pfa-o"])
@pytest.mark.parametrize("name", COMBINED)
def test_the_error_goes_through_the_same_combination_of_the_feedback_weights(name, rule):
    torch.manual_seed(0)
    model = convert(Relations(COMBINED[name]).double(), rule, strict=True)
    x, relation = given()
    y = model(x, relation)
    delta = torch.randn_like(y)
    y.backward(delta)
    F_a, F_V = (
        feedback_of(model, weight).feedback_weight(getattr(model, weight)).detach() for weight in ("a", "V")
    )
    hidden = model.below(x).detach()
    a, V = (W.detach().clone().requires_grad_() for W in (model.a, model.V))
    # y_n = h_n W_{r(n)},  W_r = sum_b a_rb V_b;  dL/dh_n = delta_n F_{r(n)}^T,  F_r = sum_b F_a_rb F_V_b
    W = torch.einsum("rb,bio->rio", a, V) * FACTORS.get(name, 1.0)
    F = torch.einsum("rb,bio->rio", F_a, F_V) * FACTORS.get(name, 1.0)
    expected = torch.einsum("ni,nio->no", hidden, W[relation])
    grad_a, grad_V = torch.autograd.grad(expected, [a, V], delta)
    error = torch.einsum("no,nio->ni", delta, F[relation])
    assert relative_error(y, expected) <= EXACT
    assert relative_error(model.a.grad, grad_a) <= EXACT
    assert relative_error(model.V.grad, grad_V) <= EXACT
    assert relative_error(model.below.weight.grad, error.t() @ x) <= EXACT
    assert verify(model, x, relation).balanced


@pytest.mark.parametrize("name", COMBINED)
def test_each_basis_has_a_feedback_weight_of_its_own_and_so_have_the_coefficients(name):
    model = convert(Relations(COMBINED[name]), "pfa")
    bases, coefficients = (feedback_of(model, weight).pathway.layout for weight in ("V", "a"))
    if name in AS_THEY_ARE:
        assert (bases.groups, bases.outputs) == (1, B)
    else:
        assert (bases.groups, bases.batch, bases.inputs) == (B, (0,), (1,))
    assert (coefficients.groups, coefficients.outputs) == (1, R)


class Adapted(nn.Module):
    """A low-rank product of two stacks, of which each example takes its own: none of them has all outputs."""

    def __init__(self):
        super().__init__()
        self.up, self.down = parameter(R, N_OUT, 2), parameter(R, 2, N_IN)

    def forward(self, x, relation):
        return torch.einsum("noi,ni->no", (self.up @ self.down)[relation], x)


def test_the_factors_of_a_product_of_low_rank_count_as_weights_of_their_shapes():
    torch.manual_seed(0)
    model, relation = convert(Adapted().double(), "fa", strict=True), given()[1]
    x = torch.randn(6, N_IN, dtype=torch.float64, requires_grad=True)
    y = model(x, relation)
    delta = torch.randn_like(y)
    y.backward(delta)
    F_up, F_down = (
        feedback_of(model, weight).feedback_weight(getattr(model, weight)) for weight in ("up", "down")
    )
    F = torch.einsum("rok,rki->roi", F_up, F_down)
    assert relative_error(x.grad, torch.einsum("no,noi->ni", delta, F[relation])) <= EXACT
    up, down = (feedback_of(model, weight).pathway.layout for weight in ("up", "down"))
    assert (up.outputs, down.outputs) == (R, R)
    assert verify(model, x, relation).balanced


def test_rows_that_are_looked_up_in_a_computed_table_are_signals():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.table = parameter(R, B), parameter(B, N_IN)

        def forward(self, relation):
            return (self.a @ self.table)[relation]

    model = convert(Rows(), "fa")
    assert model.conversion.sites == ()
    assert {other.use for other in model.conversion.others} == {"table that is looked up"}
