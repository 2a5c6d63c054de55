"""Random tensors for the feedback state of one weight."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor


class Draw:
    """Random tensors of one weight: the same for the same seed and name on every device and dtype.

    Args:
        seed: what the generator starts from.
        like: the forward weight, whose device and dtype every drawn tensor gets.
    """

    def __init__(self, seed: int, like: Tensor) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._like = like

    @property
    def exact(self) -> Draw:
        """The same draw in float32 at least, for what is computed from drawn tensors."""
        if self._like.dtype in (torch.float32, torch.float64):
            return self
        exact = copy.copy(self)
        exact._like = self._like.new_empty(0, dtype=torch.float32)
        return exact

    def uniform(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Return a tensor of the given shape, uniform around 0 with standard deviation `std`."""
        bound = math.sqrt(3.0) * std
        return self._place(shape, lambda: _memory(shape).uniform_(-bound, bound, generator=self._generator))

    def normal(self, shape: tuple[int, ...], std: float = 1.0) -> Tensor:
        """Return a tensor of the given shape, normal around 0 with standard deviation `std`."""
        return self._place(shape, lambda: _memory(shape).normal_(0, std, generator=self._generator))

    def chi(self, degrees: Tensor) -> Tensor:
        """Return for each number of degrees of freedom a root of a chi-squared number."""

        def roots() -> Tensor:
            gamma = torch._standard_gamma(degrees.double() / 2, generator=self._generator)
            return (2 * gamma).sqrt()

        return self._place(tuple(degrees.shape), roots)

    def orthogonal(self, groups: int, size: int) -> Tensor:
        """Return `(groups, size, size)`: a random orthogonal matrix for each group, Haar distributed."""

        def haar() -> Tensor:
            gaussian = _memory((groups, size, size), torch.float64).normal_(generator=self._generator)
            Q, R = torch.linalg.qr(gaussian)
            return Q * torch.diagonal(R, dim1=-2, dim2=-1).sign().unsqueeze(-2)

        return self._place((groups, size, size), haar)

    def mask(self, shape: tuple[int, ...], density: float) -> Tensor:
        """Return a tensor that is 1 with probability `density` and 0 otherwise."""
        return self._place(shape, lambda: _memory(shape).bernoulli_(density, generator=self._generator))

    def seed(self) -> Tensor:
        """Return a random whole number, as a tensor without dimensions."""
        number = torch.randint(2**62, (), generator=self._generator, device="cpu")
        return number.to(self._like.device)

    def _place(self, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
        if self._like.is_meta:
            return torch.empty(shape, dtype=self._like.dtype, device="meta")
        return make().to(device=self._like.device, dtype=self._like.dtype)


def _memory(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uninitialised memory; its device and dtype never depend on PyTorch's present defaults."""
    return torch.empty(shape, dtype=dtype, device="cpu")
