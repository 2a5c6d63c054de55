"""Functions that are linear in a weight and have no feedback: named, and refused by `strict`."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pfa_convert import UserError, convert, uses, verify

EIGHT_BITS = torch.float8_e4m3fn
CALLS = {
    "vdot": lambda x, W: torch.vdot(x[0], W[0]),
    "linalg_vecdot": lambda x, W: torch.linalg.vecdot(x, W),
    "addr": lambda x, W: x.addr(x[0], W[0]),
    "sparse_addmm": lambda x, W: torch.sparse.addmm(x, x.to_sparse(), W),
    "int_mm": lambda x, W: torch._int_mm(x.to(torch.int8), W.to(torch.int8)),
    "scaled_mm": lambda x, W: torch._scaled_mm(x.to(EIGHT_BITS), W.to(EIGHT_BITS).t(), *torch.ones(2)),
    "linalg_solve": lambda x, W: torch.linalg.solve(W, x),
    "linalg_solve_triangular": lambda x, W: torch.linalg.solve_triangular(W, x, upper=True),
    "linalg_tensorsolve": lambda x, W: torch.linalg.tensorsolve(W, x[0]),
    "linalg_lstsq": lambda x, W: torch.linalg.lstsq(W, x).solution,
    "cholesky_solve": lambda x, W: torch.cholesky_solve(x, W),
    "ormqr": lambda x, W: torch.ormqr(x, torch.zeros(4), W),
    "pairwise_distance": lambda x, W: functional.pairwise_distance(x, W),
}
if hasattr(functional, "linear_cross_entropy"):
    CALLS["linear_cross_entropy"] = lambda x, W: functional.linear_cross_entropy(x, W, torch.arange(4))


class Calls(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.first, self.W, self.call = (
            nn.Linear(4, 4),
            nn.Parameter(torch.eye(4) + torch.rand(4, 4) / 9),
            call,
        )

    def forward(self, x):
        return self.call(self.first(x), self.W)


@pytest.mark.parametrize("name", CALLS)
def test_the_weight_is_named(name):
    model, x = Calls(CALLS[name]), torch.randn(4, 4)
    converted = convert(model, "fa")
    (skipped,) = converted.conversion.skipped
    assert skipped.name == "W" and skipped.reason.startswith(name)
    assert torch.equal(converted(x), model(x)) and verify(converted, x).balanced
    with pytest.raises(UserError, match=name):
        convert(model, "fa", strict=True)


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"pairwise_distance"}))
def test_verify_needs_no_report_to_know_it(name):
    found = uses(Calls(CALLS[name]), torch.randn(4, 4))
    assert any(use.linear and use.parameters == ("W",) for use in found)


def test_an_orthogonal_weight_by_cayleys_formula_is_a_site():
    """What such a function computes of weights alone is a weight."""

    class Cayley(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.A = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            skew = self.A - self.A.t()
            return self.first(x) @ torch.linalg.solve(torch.eye(4) + skew, torch.eye(4) - skew)

    assert {site.name for site in convert(Cayley(), "fa", strict=True).conversion.sites} == {"first", "A"}
