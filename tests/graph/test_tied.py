"""One weight, or one module, in several places of a model."""

import torch
from harness import EXACT, error_below, feedback_of, relative_error
from torch import nn
from torch.nn import functional

from pfa_convert import convert, couple, feedback_phase


def test_a_weight_used_twice_keeps_one_feedback_state():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = convert(nn.Sequential(first, nn.ReLU(), second), "pfa", options={"strategy": "fused"})
    assert len(model.conversion.sites) == 2
    assert feedback_of(model[0]) is feedback_of(model[2])
    assert len([name for name, _ in model.named_parameters() if name.endswith(".R")]) == 1
    assert model.conversion.feedback_elements == 4 * 40 + 40 * 4


class Readout(nn.Module):
    """A language model's tied read-out: the embedding's weight, applied by a function."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4, bias=False)

    def forward(self, tokens):
        return functional.linear(self.mix(self.embedding(tokens)), self.embedding.weight)


def test_an_embedding_that_is_also_the_read_out():
    model = convert(Readout().double(), "fa")
    assert [(site.name, site.kind) for site in model.conversion.sites] == [
        ("mix", "Linear"),
        ("embedding", "linear()"),
    ]
    tokens = torch.tensor([1, 3])
    model(tokens).sum().backward()
    delta = torch.ones(2, 7).double() @ feedback_of(model.embedding).F0
    assert relative_error(model.mix.weight.grad, delta.t() @ model.embedding(tokens)) <= EXACT


class TokenLookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 7, bias=False)

    def forward(self, tokens):
        return self.head(functional.embedding(tokens, self.head.weight))


def test_looking_up_rows_of_a_weight_is_not_a_site():
    model = convert(TokenLookup(), "fa")
    assert [(site.name, site.kind) for site in model.conversion.sites] == [("head", "Linear")]


def tied():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second)


def test_the_gradients_of_a_weight_used_twice():
    model = convert(tied().double(), "pfa", options={"expansion": 2, "strategy": "fused"})
    feedback = feedback_of(model[0])
    F = feedback.feedback_weight(model[0].weight)
    x = torch.randn(3, 4, dtype=torch.float64)
    hidden = functional.linear(x, model[0].weight, model[0].bias)
    below = torch.ones(3, 4).double() @ F * (hidden > 0)
    assert relative_error(error_below(model, x), below @ F) <= EXACT
    grad_W = below.t() @ x + torch.ones(4, 3).double() @ hidden.relu()
    assert relative_error(model[0].weight.grad, grad_W) <= EXACT
    assert relative_error(feedback.R.grad, feedback.B[0].t() @ grad_W) <= EXACT


def test_the_feedback_of_a_weight_used_twice_learns_once_in_a_phase():
    model = convert(tied().double(), "sa", options={"rate": 0.25})
    W, F = model[0].weight.detach(), feedback_of(model[2]).F.clone()
    feedback_phase(model)
    assert relative_error(feedback_of(model[2]).F, F + 0.25 * (W - F)) <= EXACT


def test_the_feedback_of_a_weight_used_twice_forgets_once_in_a_step():
    model = convert(tied().double(), "pfa", options={"expansion": 2, "strategy": "fused"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    couple(model, optimizer, forgetting=4)
    feedback = feedback_of(model[2])
    R, wanted = feedback.R.detach().clone(), feedback.B[0].t() @ model[0].weight.detach()
    model(torch.randn(3, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert relative_error(feedback.R.detach(), R + (wanted - R) / 4) <= EXACT


def test_a_module_called_twice_is_one_site():
    layer = nn.Linear(4, 4)
    model = convert(nn.Sequential(layer, nn.ReLU(), layer), "fa")
    assert len(model.conversion.sites) == 1 and model[0] is model[2]


def test_the_report_tells_the_rule_that_a_tied_weight_really_has():
    model = convert(tied(), "fa", overrides=[{"match": "2", "rule": "bp"}])
    has_feedback = [hasattr(model[index], "feedback_of_weight") for index in (0, 2)]
    assert [site.rule != "bp" for site in model.conversion.sites] == has_feedback
