"""What is computed from the sizes of activations is a constant, and with weights alone a weight."""

import pytest
import torch
from harness import EXACT, feedback_of, relative_error
from torch import nn

from pfa_convert import convert, verify

SIZES = {
    "size": lambda x: x.size(-1),
    "size of all": lambda x: x.size()[-1],
    "shape": lambda x: x.shape[-1],
    "numel": lambda x: x[0, 0].numel(),
}


class Kernel(nn.Module):
    """The kernel of a diagonal state space, applied in Fourier space (Gu et al. 2022, S4D, section 3.3)."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.C, self.A = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 3))

    def forward(self, u):
        length = self.size(u)
        decays = torch.exp(-self.A.exp().unsqueeze(-1) * torch.arange(length))
        kernel = torch.fft.rfft(torch.einsum("hn,hnl->hl", self.C, decays), n=2 * length)
        return torch.fft.irfft(kernel * torch.fft.rfft(u, n=2 * length), n=2 * length)[..., :length]


@pytest.mark.parametrize("name", SIZES)
def test_what_is_multiplied_among_weights_alone_is_no_site(name):
    model = convert(Kernel(SIZES[name]), "fa")
    assert model.conversion.sites == () and model.conversion.skipped == ()
    assert {other.name: other.use for other in model.conversion.others} == {"A": "scale", "C": "scale"}
    assert verify(model, torch.randn(2, 4, 6)).balanced


class Positions(nn.Module):
    """Compares with the first rows of a table, as many as there are features."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.table = nn.Parameter(torch.randn(9, 5))

    def forward(self, x):
        return x @ self.table[torch.arange(self.size(x))]


@pytest.mark.parametrize("name", SIZES)
def test_rows_looked_up_by_a_size_are_a_weight(name):
    torch.manual_seed(0)
    model = convert(Positions(SIZES[name]).double(), "fa", strict=True)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    y = model(x)
    delta = torch.randn_like(y)
    y.backward(delta)
    F = feedback_of(model, "table").feedback_weight(model.table)[:6]
    assert relative_error(x.grad, torch.einsum("bto,io->bti", delta, F)) <= EXACT
    grad = torch.einsum("bti,bto->io", x.detach(), delta)
    assert relative_error(model.table.grad[:6], grad) <= EXACT
    assert not model.table.grad[6:].any()
    assert verify(model, x.detach()).balanced
