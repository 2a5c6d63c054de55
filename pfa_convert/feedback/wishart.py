"""What the product rules need of a random `B`, without drawing it: `G = B B^T` and `B R_0`.

For a `B` `(N_out, N_mid)` of independent normal entries with variance `1 / N_mid`, `N_mid >= N_out`,
Bartlett's decomposition says that `G` has the law of `L L^T / N_mid`, where `L` is lower triangular with
`L_ii^2 ~ chi^2(N_mid - i)`, i from 0, and `L_ij ~ N(0, 1)` below. And given `B`, `B R_0` of an `R_0` of
independent normal entries has that of `L Z / sqrt(N_mid)`, with `Z` of the weight's shape.
(Bartlett 1933; Muirhead 1982, theorem 3.2.14.)
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 512
"""Rows and columns of a block of `L L^T`: large enough for the matrix product's own speed."""


def bartlett_factor(normal: Tensor, chi: Tensor) -> Tensor:
    """Return `L` `(groups, n, n)`, in the memory of `normal`; `chi` is `(groups, n)`, its diagonal."""
    L = normal.tril_(-1)
    torch.diagonal(L, dim1=-2, dim2=-1).copy_(chi)
    return L


def product_with_transpose(L: Tensor) -> Tensor:
    """Return `L L^T` of a lower triangular `(groups, n, n)`, in the memory of `L`.

    Block by block from the end: a block needs nothing of `L` to the right of its own columns, nor below its
    rows. The zeros of `L` and the symmetry of the result save five sixths of a product's work.
    """
    for row in reversed(range(0, L.shape[-1], BLOCK)):
        rows = slice(row, row + BLOCK)
        for column in reversed(range(0, row + 1, BLOCK)):
            columns = slice(column, column + BLOCK)
            block = L[:, rows, : columns.stop] @ L[:, columns, : columns.stop].mT
            L[:, rows, columns] = block
            L[:, columns, rows] = block.mT
    return L
