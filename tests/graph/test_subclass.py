"""The classes that converted modules get: a user's own forward above them, copies, pickles, the way back."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from harness import error_below, feedback_of
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from pfa_convert import convert, revert
from pfa_convert.comparison import forward_difference


class ByMode(nn.Linear):
    """As spikingjelly's: what it does to its input depends on the values, so no graph is made of it."""

    mode = "single"

    def forward(self, x):
        if self.mode == "single" and x.sum() > 1e6:
            raise ValueError("overflow")
        return super().forward(x if self.mode == "single" else x.flatten(0, 1)) * 2


class Loud(ByMode):
    def forward(self, x):
        return super().forward(x) + 1


def test_a_subclass_that_calls_super_is_a_site_and_keeps_its_own_forward():
    for cls in (ByMode, Loud):
        plain = nn.Sequential(cls(4, 3), nn.ReLU(), nn.Linear(3, 2))
        model, x = convert(plain, "fa"), torch.randn(5, 4)
        assert [site.name for site in model.conversion.sites] == ["0", "2"]
        assert not model.conversion.skipped
        assert forward_difference(plain, model, x) == 0
        delta = torch.randn(5, 3)
        expected = functional.linear(2 * delta, feedback_of(model[0]).F0.t())
        assert torch.allclose(error_below(model[0], x, delta), expected, atol=1e-6)
        model[0].mode = "many"
        assert model[0](x[:, None]).shape == (5, 3)
        assert isinstance(model[0], cls) and type(revert(model)[0]) is cls


def test_a_subclass_that_applies_its_weight_itself_as_well_is_no_plain_layer():
    class Both(nn.Linear):
        def forward(self, x):
            return super().forward(x) + functional.linear(x, self.weight)

    plain = nn.Sequential(Both(4, 3))
    model, x, delta = convert(plain, "fa"), torch.randn(5, 4), torch.randn(5, 3)
    assert torch.allclose(error_below(model, x, delta), 2 * delta @ feedback_of(model[0]).F0, atol=1e-6)


def test_a_whole_model_goes_through_pickle_into_another_process(tmp_path):
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4)), "pfa")
    x = torch.randn(2, 2, 4, 4)
    torch.save((model, x, error_below(model, x)), tmp_path / "model.pt")
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "model, x, below = torch.load(sys.argv[1], weights_only=False)\n"
        "x.requires_grad_(); model(x).sum().backward()\n"
        "assert torch.equal(x.grad, below), 'another error'\n"
        "import pfa_convert; print(type(pfa_convert.revert(model)[0]).__name__, model.conversion.counts())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.pt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "Conv2d {'pfa': 2}\n"


def test_a_model_with_direct_feedback_goes_through_pickle():
    model = convert(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), "dfa")
    again, x = pickle.loads(pickle.dumps(model)), torch.randn(2, 4)
    assert torch.equal(error_below(again, x), error_below(model, x))
    assert type(again) is type(model)


def test_a_copy_has_the_same_classes():
    model = convert(nn.Sequential(ByMode(4, 3), weight_norm(nn.Linear(3, 2))), "fa")
    again, x = copy.deepcopy(model), torch.randn(2, 4)
    assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]
    assert torch.equal(error_below(again, x), error_below(model, x))


def test_weight_norm_added_after_the_conversion_sends_the_error_through_the_same_norm():
    plain = nn.Sequential(nn.Linear(4, 3).double())
    model, x, delta = convert(plain, "fa"), torch.randn(5, 4).double(), torch.randn(5, 3).double()
    weight_norm(model[0])
    below = error_below(model, x, delta)
    F0, norms = feedback_of(model[0]).F0, model[0].parametrizations.weight.original0
    F = F0 * norms / F0.norm(dim=1, keepdim=True)
    assert torch.allclose(below, delta @ F, atol=1e-12)
    back = revert(model)
    assert torch.equal(back(x), model(x)) and not any("feedback" in name for name in back.state_dict())
    assert not hasattr(type(back[0]), "plain_class")


def test_weight_norm_removed_after_the_conversion_leaves_the_feedback_weight():
    plain = nn.Sequential(weight_norm(nn.Linear(4, 3)))
    before, x, delta = type(plain[0]), torch.randn(5, 4), torch.randn(5, 3)
    model = convert(plain, "fa")
    remove_parametrizations(model[0], "weight")
    assert torch.allclose(error_below(model, x, delta), delta @ feedback_of(model[0]).F0, atol=1e-6)
    assert type(revert(model)[0]) is nn.Linear
    assert type(plain[0]) is before and plain(x).shape == (5, 3)


def test_attention_whose_weight_is_parametrized_after_the_conversion_says_so():
    model, x = convert(nn.MultiheadAttention(8, 2), "fa"), torch.randn(3, 2, 8)
    weight_norm(model, "in_proj_weight")
    with pytest.raises(RuntimeError, match="in_proj_weight of this MultiheadAttention was parametrized"):
        model(x, x, x)
