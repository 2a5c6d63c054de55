"""The recurrent cells as PyTorch's documentation defines them, with a feedback weight for each weight."""

import torch
from torch import nn


def through(x, W, F):
    return x.detach() @ W.T + (x @ F.T - (x @ F.T).detach())


def literal_cell(cell, x, state, F_ih, F_hh):
    """The cells as PyTorch's documentation defines them; state and result are tuples `(h,)` or `(h, c)`."""
    from_x, from_h = through(x, cell.weight_ih, F_ih), through(state[0], cell.weight_hh, F_hh)
    if cell.bias:
        from_x, from_h = from_x + cell.bias_ih, from_h + cell.bias_hh
    if isinstance(cell, nn.RNNCell):
        return (getattr(torch, cell.nonlinearity)(from_x + from_h),)
    if isinstance(cell, nn.LSTMCell):
        i, f, g, o = (from_x + from_h).chunk(4, 1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    (r, z, n), (r_h, z_h, n_h) = from_x.chunk(3, 1), from_h.chunk(3, 1)
    r, z = torch.sigmoid(r + r_h), torch.sigmoid(z + z_h)
    n = torch.tanh(n + r * n_h)
    return ((1 - z) * n + z * state[0],)


def cell_reference(cell, F, x, hx):
    """The same for `pfa_convert.testing.check_layer`."""
    state = hx if isinstance(hx, tuple) else (hx,)
    result = literal_cell(cell, x, state, F["weight_ih"], F["weight_hh"])
    return result if len(result) > 1 else result[0]
