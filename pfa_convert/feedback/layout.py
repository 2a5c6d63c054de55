"""How a weight tensor is laid out, so that every rule can treat it as one matrix per group."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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

    def to_blocks(self, W: Tensor, blocks: int) -> Tensor:
        """Return `W` as `(blocks, N_out/blocks, N_in)`: each group's outputs divided in their order."""
        matrix = self.to_matrix(W)
        return matrix.reshape(blocks, -1, matrix.shape[-1])

    def from_blocks(self, matrix: Tensor) -> Tensor:
        """Undo `to_blocks`."""
        return self.from_matrix(matrix.reshape(self.groups, -1, matrix.shape[-1]))

    @property
    def xavier_std(self) -> float:
        """Standard deviation of Xavier's initialiser, `sqrt(2 / (fan_in + fan_out))`."""
        receptive_field = math.prod(self.shape[2:])
        return math.sqrt(2.0 / ((self.shape[0] + self.shape[1]) * receptive_field))

    def is_weight(self, transposed: bool) -> bool:
        """Say whether `linear` or a convolution, perhaps `transposed`, applies the weight as it is."""
        return self.transposed == transposed

    def is_matrix(self, left: bool) -> bool:
        """Say whether `W @ x` (with `left`) or `x @ W` applies the weight as it is."""
        return left and len(self.shape) == 2 and not self.transposed

    @property
    def takes_rows(self) -> bool:
        """Whether the input has a row, or a position, for each example: what direct feedback needs."""
        return True


@dataclass(frozen=True)
class ProductLayout(WeightLayout):
    """The layout of a weight that is an operand of a product of tensors, such as `x @ W`.

    Each dimension of `W` is one of three: summed over with the input (`N_in`), an output's (the rest),
    or one for which the product is repeated (`batch`), which divides `W` into groups.
    """

    inputs: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()

    @property
    def _outputs(self) -> tuple[int, ...]:
        return tuple(d for d in range(len(self.shape)) if d not in self.inputs and d not in self.batch)

    @property
    def _order(self) -> tuple[int, ...]:
        return self.batch + self._outputs + self.inputs

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """The numbers of groups, and in each of outputs and inputs."""
        return self._size(self.batch), self._size(self._outputs), self._size(self.inputs)

    def _size(self, dimensions: tuple[int, ...]) -> int:
        return math.prod([self.shape[d] for d in dimensions])  # a compiler takes no generator

    @property
    def outputs(self) -> int:
        """`N_out`, of all groups together."""
        batch, outputs, _ = self._sizes
        return batch * outputs

    def with_outputs(self, outputs: int) -> WeightLayout:
        """Return the layout of a map from the same inputs to another number of outputs."""
        if not self.has_outputs:
            return WeightLayout((outputs, self._sizes[2]), self.groups)
        (dimension,) = self._outputs
        sizes = [*self.shape[:dimension], outputs // self.groups, *self.shape[dimension + 1 :]]
        return replace(self, shape=tuple(sizes))

    @property
    def has_outputs(self) -> bool:
        """Whether one dimension is that of the outputs."""
        return len(self._outputs) == 1

    @property
    def has_any_outputs(self) -> bool:
        """Whether a dimension is one of the outputs."""
        return bool(self._outputs)

    def is_weight(self, transposed: bool) -> bool:
        """Say whether `linear` or a convolution applies the weight as it is."""
        return False

    def is_matrix(self, left: bool) -> bool:
        """Say whether `W @ x` (with `left`) or `x @ W` applies the weight as it is."""
        size = len(self.shape)
        summed = size - 1 if left else size - 2
        return size > 1 and self.inputs == (summed,) and self.batch == tuple(range(size - 2))

    def to_matrix(self, W: Tensor) -> Tensor:
        """Return `W` as `(groups, N_out/groups, N_in)`."""
        return W.permute(self._order).reshape(self._sizes)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Undo `to_matrix`."""
        order = self._order
        ordered = matrix.reshape([self.shape[d] for d in order])
        return ordered.permute([order.index(d) for d in range(len(order))])

    @property
    def xavier_std(self) -> float:
        """Standard deviation of Xavier's initialiser, `sqrt(2 / (N_in + N_out/groups))`."""
        _, outputs, inputs = self._sizes
        return math.sqrt(2.0 / (outputs + inputs))

    @property
    def takes_rows(self) -> bool:
        """Whether the product is `x @ W` with one matrix `W` of `(N_in, N_out)`."""
        return len(self.shape) == 2 and self.inputs == (0,)


def product_layout(shape: tuple[int, ...], inputs: tuple[int, ...], batch: tuple[int, ...]) -> WeightLayout:
    """Return the layout with these dimensions; the ordinary one where they are those of a linear map."""
    if inputs == (1,) and len(shape) == 2 and not batch:
        return WeightLayout(shape)
    groups = math.prod(shape[d] for d in batch)
    return ProductLayout(shape, groups, inputs=inputs, batch=batch)
