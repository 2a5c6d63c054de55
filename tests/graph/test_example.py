"""What an example's run finds, what `strict` refuses, and how a failure is told."""

import copy

import pytest
import torch
from harness import EXACT, error_below, relative_error
from test_forward_is_the_users import module, parameter
from torch import nn
from torch.nn import functional

from pfa_convert import UserError, convert, load, save


class Hidden(nn.Module):
    """Weights behind control flow that depends on values."""

    def __init__(self):
        super().__init__()
        self.W, self.V, self.table = parameter(4, 4), parameter(4, 4), parameter(6, 4)
        self.inner = nn.Linear(4, 4)

    def forward(self, x, *, scale=None):
        if float(x.detach().norm()) < 0:
            return x
        y = functional.relu(x @ self.W)
        if float(y.detach().norm()) < 0:
            return y @ self.V
        return self.inner(y) + self.table[len(x)] * (1 if scale is None else scale)


def test_an_examples_run_finds_what_no_walk_can_follow():
    torch.manual_seed(0)
    plain, x = Hidden().double(), torch.randn(3, 4, dtype=torch.float64)
    model = convert(plain, "fa", example=((x,), {"scale": 2.0}))
    report = model.conversion
    kinds = {site.weight: site.kind for site in report.sites}
    assert kinds == {"W": "matmul()", "inner.weight": "Linear"}
    assert [left.name for left in report.skipped] == ["V"]
    assert [(other.name, other.use) for other in report.others] == [("table", "added")]
    error = torch.ones(3, 4).double() @ model.inner.feedback_of_weight.F0 * (x @ plain.W > 0)
    assert relative_error(error_below(model, x), error @ model.feedback_of_W.F0.t()) <= EXACT


def test_an_examples_run_leaves_the_model_and_the_random_numbers_as_they_were():
    plain = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), Hidden())
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    state = torch.get_rng_state()
    convert(plain, "fa", example=((torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),), {}))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())


class Target(nn.Module):
    """Runs a copy of one of its modules that it makes itself, as methods with a slow copy of a network do."""

    def __init__(self):
        super().__init__()
        self.inner, self.W = nn.Linear(4, 4), parameter(4, 4)

    def forward(self, x):
        slow = copy.deepcopy(self.inner)
        return (slow(x) + self.inner(x)) @ self.W


def test_a_forward_may_copy_a_module_that_an_example_runs():
    plain, x = Target().double(), torch.randn(3, 4, dtype=torch.float64)
    model = convert(plain, "fa", example=((x,), {}), strict=True)
    assert {site.name for site in model.conversion.sites} == {"inner", "W"}
    error = torch.ones(3, 4).double() @ model.feedback_of_W.F0.t()
    assert relative_error(error_below(model, x), 2 * error @ model.inner.feedback_of_weight.F0) <= EXACT


def test_what_an_example_found_is_kept_with_the_model(tmp_path):
    model = convert(Hidden(), "fa", example=((torch.randn(3, 4),), {}))
    again = convert(Hidden(), **model.conversion.settings)
    assert again.conversion.sites == model.conversion.sites
    save(model, tmp_path / "hidden.safetensors", f"{__name__}:Hidden")
    assert load(tmp_path / "hidden.safetensors").state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (((torch.randn(3, 5),), {}), "does not run with it: RuntimeError"),
        (torch.randn(3, 4), "not a pair"),
        (((torch.randn(3, 4),), None), "not a pair"),
    ],
)
def test_an_example_that_does_not_fit_is_one_line(example, message):
    with pytest.raises(UserError, match=message):
        convert(Hidden(), "fa", example=example)


def test_strict_names_what_would_get_no_rule():
    with pytest.raises(UserError, match=r"strict: 3 weights get no rule: W \(torch.fx: TypeError"):
        convert(Hidden(), "fa", strict=True)
    unused = module(lambda s, x: s.l(x), l=nn.Linear(4, 4), W=parameter(4, 4))
    with pytest.raises(UserError, match=r"strict: 1 weights? get no rule: W \(no forward"):
        convert(unused, "fa", strict=True)
    assert len(convert(nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4)), strict=True).conversion.sites) == 1


def test_where_tracing_fails_the_reason_names_the_users_line_and_what_helps():
    reasons = {left.name: left.reason for left in convert(Hidden(), "fa").conversion.skipped}
    assert "test_example.py" in reasons["W"] and "if float(x.detach().norm()) < 0" in reasons["W"]
    assert "example=(args, kwargs)" in reasons["W"]


def test_direct_feedback_is_not_claimed_where_it_has_no_meaning():
    def heads(self, x):
        return self.head(torch.einsum("bi,hio->bho", x, self.W).sum(1))

    plain = module(heads, W=parameter(2, 4, 3), head=nn.Linear(3, 2))
    model = convert(plain, "dfa")
    rules = {site.weight: (site.rule, site.reason) for site in model.conversion.sites}
    assert rules["head.weight"] == ("dfa", "default")
    assert rules["W"][0] == "bp" and "no meaning" in rules["W"][1]
    x = torch.randn(3, 4)
    model(x).sum().backward()
    assert torch.equal(model(x), plain(x))


def test_a_fused_recurrent_layer_stays_named_when_an_example_runs_it():
    model = nn.Sequential(nn.LSTM(4, 3, batch_first=True))
    for example in (None, ((torch.randn(2, 5, 4),), {})):
        report = convert(model, "fa", example=example).conversion
        assert {left.name for left in report.skipped} == {"0.weight_ih_l0", "0.weight_hh_l0"}
