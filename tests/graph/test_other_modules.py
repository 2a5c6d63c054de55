"""Modules that are not written in Python classes alone: GraphModules, ScriptModules, layers of no size."""

import copy
import pickle
from types import MethodType

import pytest
import torch
from harness import error_below, feedback_of
from torch import fx, nn
from torch.nn import functional

from pfa_convert import UserError, alignment, convert, revert, verify
from pfa_convert.comparison import forward_difference


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.inner = nn.ParameterDict({"W": torch.randn(4, 4)})
        self.W = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return functional.linear(functional.linear(self.layer(x), self.inner["W"]), self.W)


def below(model, delta):
    first, W = feedback_of(model.layer).F0, feedback_of(model, "W").F0
    return delta @ W @ model.inner.feedback_of_W.F0 @ first


def test_a_graph_module_is_converted_copied_pickled_edited_and_reverted():
    plain = fx.symbolic_trace(Mixed())
    model, x, delta = convert(plain, "fa"), torch.randn(5, 3), torch.randn(5, 2)
    assert sorted(site.name for site in model.conversion.sites) == ["W", "inner.W", "layer"]
    assert forward_difference(plain, model, x) == 0
    expected = below(model, delta)
    edited = copy.deepcopy(model)
    edited.recompile()
    for again in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), edited):
        assert torch.allclose(error_below(again, x, delta), expected, atol=1e-5)
        assert again.conversion == model.conversion
    doubled = copy.deepcopy(model)
    output = next(node for node in doubled.graph.nodes if node.op == "output")
    with doubled.graph.inserting_before(output):
        output.replace_input_with(
            output.args[0], doubled.graph.call_function(torch.mul, (output.args[0], 2.0))
        )
    doubled.recompile()
    assert torch.equal(doubled(x), 2 * model(x))
    assert torch.allclose(error_below(doubled, x, delta), 2 * expected, atol=1e-5)
    back = revert(doubled)
    assert torch.equal(back(x), 2 * plain(x)) and not hasattr(back, "conversion")


def test_a_graph_module_inside_a_model_is_copied_with_it():
    model, x = convert(nn.Sequential(fx.symbolic_trace(Mixed()), nn.Linear(2, 2)), "pfa"), torch.randn(5, 3)
    assert torch.equal(error_below(copy.deepcopy(model), x), error_below(model, x))


def test_a_script_module_is_refused_and_named_as_a_part():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(UserError, match=r"before torch\.jit"):
        convert(scripted)
    for part in (scripted, torch.jit.trace(nn.Sequential(nn.Linear(3, 3)), torch.randn(1, 3))):
        model = convert(nn.Sequential(nn.Linear(3, 3), part), "fa")
        assert [site.name for site in model.conversion.sites] == ["0"]
        (left,) = model.conversion.skipped
        assert (left.name, left.weight_shape) == ("1.0.weight", (3, 3)) and "ScriptModule" in left.reason
        account = verify(model, torch.randn(2, 3))
        assert account.balanced and [entry.name for entry in account.having("skipped")] == ["1.0.weight"]
        x = torch.randn(2, 3)
        assert torch.equal(revert(model)(x), model(x))
        torch.optim.AdamW(model.parameters())  # takes leaves of the graph alone


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("rule", ["bp", "fa", "kp", "pfa", "usf"])
def test_layers_without_elements_are_left_alone(rule):
    plain = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 4), nn.Conv1d(4, 2, 1))
    model, x = convert(plain, rule, strict=True), torch.randn(4, 3)
    assert [site.name for site in model.conversion.sites] == ["2"]
    assert {o.name: o.use for o in model.conversion.others} == {
        "0.weight": "nothing: it has no elements",
        "1.weight": "nothing: it has no elements",
    }
    model[:2](x).sum().backward()
    assert alignment(model).keys() == {"2"}


class Doubled(nn.Module):
    """Has layers whose forward someone has replaced, as offloading and instrumentation do."""

    def __init__(self):
        super().__init__()
        self.below, self.replaced = nn.Linear(4, 4), nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.block = nn.Sequential(nn.Linear(4, 4))
        for module in (self.replaced, self.attention, self.block):
            module.forward = MethodType(type(module).forward, module)

    def forward(self, x):
        x = self.block(self.replaced(self.below(x)))
        return self.attention(x, x, x)[0]


def test_a_layer_whose_forward_was_replaced_on_the_instance_is_skipped_and_those_within_are_sites():
    model, x = convert(Doubled(), "fa"), torch.randn(2, 3, 4)
    assert [site.weight for site in model.conversion.sites] == ["below.weight", "block.0.weight"]
    skipped = {one.name: one.reason for one in model.conversion.skipped}
    assert list(skipped) == ["replaced.weight", "attention.in_proj_weight", "attention.out_proj.weight"]
    assert all("replaced on the instance" in reason for reason in skipped.values())
    assert verify(model, x).balanced
    with pytest.raises(UserError, match=r"strict: 3 weights.*replaced on the instance"):
        convert(Doubled(), "fa", strict=True)
