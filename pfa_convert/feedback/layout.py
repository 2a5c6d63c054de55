"""How a weight tensor is laid out, so that every rule can treat it as one matrix per group."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class WeightLayout:
    """The shape of a forward weight and what its first two dimensions mean.

    Linear and ConvNd weights are `(N_out, N_in/groups, *k)`, ConvTransposeNd weights
    `(N_in, N_out/groups, *k)`.
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @property
    def outputs(self) -> int:
        """`N_out`, the number of output channels or features."""
        return self.shape[1] * self.groups if self.transposed else self.shape[0]

    def with_outputs(self, outputs: int) -> WeightLayout:
        """Return the layout of a map from the same inputs to another number of outputs."""
        if self.transposed:
            shape = (self.shape[0], outputs // self.groups, *self.shape[2:])
        else:
            shape = (outputs, *self.shape[1:])
        return WeightLayout(shape, self.groups, self.transposed)

    def to_matrix(self, W: Tensor) -> Tensor:
        """View `W` as `(groups, N_out/groups, N_in/groups * prod(k))`."""
        if not self.transposed:
            return W.reshape(self.groups, self.shape[0] // self.groups, math.prod(self.shape[1:]))
        split = W.reshape(self.groups, self.shape[0] // self.groups, *self.shape[1:])
        inputs = self.shape[0] // self.groups * math.prod(self.shape[2:])
        return split.transpose(1, 2).reshape(self.groups, self.shape[1], inputs)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Undo `to_matrix`."""
        if not self.transposed:
            return matrix.reshape(self.shape)
        inputs = self.shape[0] // self.groups
        split = matrix.reshape(self.groups, self.shape[1], inputs, *self.shape[2:])
        return split.transpose(1, 2).reshape(self.shape)

    @property
    def xavier_std(self) -> float:
        """Standard deviation of Xavier's initialiser, `sqrt(2 / (fan_in + fan_out))`."""
        receptive_field = math.prod(self.shape[2:])
        return math.sqrt(2.0 / ((self.shape[0] + self.shape[1]) * receptive_field))
