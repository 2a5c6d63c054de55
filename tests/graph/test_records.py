"""Weights that are handed to a child in a named tuple or a data class, with the formula written out."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from handed import linear
from test_handed_weights import assert_is_the_formula
from torch import Tensor, nn

from pfa_convert import convert


class Batch(NamedTuple):
    x: Tensor
    w: Tensor
    mask: Tensor | None = None


@dataclass
class Data:
    x: Tensor
    w: Tensor
    mask: Tensor | None = None


class ByName(nn.Module):
    def forward(self, batch):
        return batch.x @ batch.w.t()


class ByNumber(nn.Module):
    def forward(self, batch):
        return batch[0] @ batch[1].t()


class Unpacking(nn.Module):
    def forward(self, batch):
        x, w, _ = batch
        return torch.nn.functional.linear(x, w)


class Deeper(nn.Module):
    """Hands the record on, within a list."""

    def __init__(self, child):
        super().__init__()
        self.child = child

    def forward(self, several):
        return self.child(several[0])


class Handing(nn.Module):
    def __init__(self, record, child):
        super().__init__()
        self.record, self.child = record, child
        self.W, self.x = nn.Parameter(torch.randn(3, 5)), torch.randn(6, 5)

    def forward(self, x):
        record = self.record(x=x, w=2 * self.W)
        return self.child([record] if isinstance(self.child, Deeper) else record)

    @staticmethod
    def formula(self, x, F):
        return linear(x, 2 * self.W, 2 * F["W"])


class Packing(nn.Module):
    """Returns a record of what it is handed."""

    def forward(self, x, w):
        return Batch(torch.tanh(x), w.t())


class Receiving(nn.Module):
    def __init__(self):
        super().__init__()
        self.W, self.pack, self.x = nn.Parameter(torch.randn(3, 5)), Packing(), torch.randn(6, 5)

    def forward(self, x):
        batch = self.pack(x, self.W)
        return batch.x @ batch.w

    @staticmethod
    def formula(self, x, F):
        return linear(torch.tanh(x), self.W, F["W"])


@pytest.mark.parametrize("rule", ["fa", "pfa", "usf"])
@pytest.mark.parametrize(
    ("record", "child"),
    [(Batch, ByName), (Batch, ByNumber), (Batch, Unpacking), (Data, ByName)],
)
def test_the_error_goes_through_the_weight_of_a_record(record, child, rule):
    assert_is_the_formula(Handing(record, child()), rule, strict=True)


@pytest.mark.parametrize("record", [Batch, Data])
def test_through_the_weight_of_a_record_that_is_handed_on(record):
    assert_is_the_formula(Handing(record, Deeper(ByName())), "fa", strict=True)


def test_through_the_weight_of_a_record_that_a_child_returns():
    assert_is_the_formula(Receiving(), "fa", strict=True)


@pytest.mark.parametrize("record", [Batch, Data])
def test_what_else_is_done_with_a_weight_of_a_record_is_said(record):
    class Adding(nn.Module):
        def forward(self, batch):
            return batch.x + batch.w

    report = convert(Handing(record, Adding()), "fa").conversion
    assert [(other.name, other.use) for other in report.others] == [("W", "added")]
