"""What an expansion leads to, without training: the path angle of `B B^T W` and the spectrum of `B B^T`.

Once PFA has forgotten the start of `R`, `F = B B^T W`. How far that is from `W` is decided by the draw of `B`
alone, and known from the theory of random matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pfa_convert.alignment import angle, feedback_of
from pfa_convert.convert import convert
from pfa_convert.errors import UserError
from pfa_convert.inspection import eigenvalues_of_gram
from pfa_convert.seeds import derived_seed

EXPANSIONS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100)


@dataclass(frozen=True)
class Draws:
    """What so many draws of `B` and `W` gave for one expansion: angles in degrees, eigenvalues of `B B^T`.

    `eigenvalues` are those of all draws together, ascending.
    """

    expansion: float
    angles_deg: tuple[float, ...]
    eigenvalues: tuple[float, ...]

    @property
    def expected_deg(self) -> float:
        """The angle for many neurons: `atan(1/sqrt(expansion))`."""
        return math.degrees(math.atan(1 / math.sqrt(self.expansion)))


def draw_expansion(expansion: float, *, outputs: int, inputs: int, draws: int, seed: int = 0) -> Draws:
    """Convert a new linear layer to PFA, its `B` uniform as the paper's, and look at `B B^T` and `W`.

    Args:
        expansion: middle neurons per output neuron.
        outputs: neurons above the feedback.
        inputs: neurons below it.
        draws: how many layers to draw; `W` by Xavier's uniform distribution.
        seed: decides them all.

    Raises:
        UserError: for an expansion that the rule does not take, or sizes below 1.
    """
    for name, value in (("outputs", outputs), ("inputs", inputs), ("draws", draws)):
        if value < 1:
            raise UserError(f"{name}: must be at least 1, given {value}")
    angles: list[float] = []
    eigenvalues: list[float] = []
    for draw in range(draws):
        layer = convert(
            nn.Sequential(nn.Linear(inputs, outputs, bias=False)),
            "pfa",
            options={"expansion": expansion, "law": "uniform"},
            seed=derived_seed(seed, f"expansion {expansion:g}, draw {draw}"),
            inplace=True,
            reinit="xavier_uniform",
        )
        feedback = feedback_of(layer, "0.weight")
        assert feedback is not None
        G = feedback.pathway.gram(feedback.named_state())
        assert G is not None
        W = layer.get_parameter("0.weight")
        angles.append(angle(G[0].to(W.dtype) @ W, W))
        eigenvalues.extend(eigenvalues_of_gram(feedback))
    return Draws(expansion, tuple(angles), tuple(sorted(eigenvalues)))


def marchenko_pastur(eigenvalues: Tensor, expansion: float) -> Tensor:
    """Return the density of the eigenvalues of `B B^T` for many neurons.

    With `c = 1/expansion`, between the edges `(1 -+ sqrt(c))^2`, for `c <= 1`:

        p(x) = sqrt((x_max - x) (x - x_min)) / (2 pi c x)

    Below expansion 1, `B B^T` has besides a share `1 - expansion` of zeros.
    Source: Marchenko & Pastur 1967.
    """
    c = 1 / expansion
    lowest, highest = marchenko_pastur_edges(expansion)
    under = ((highest - eigenvalues) * (eigenvalues - lowest)).clamp(min=0)
    return torch.where(under > 0, under.sqrt() / (2 * math.pi * c * eigenvalues.clamp(min=1e-300)), 0.0)


def marchenko_pastur_edges(expansion: float) -> tuple[float, float]:
    """Return the smallest and the largest non-zero eigenvalue for many neurons: `(1 -+ sqrt(c))^2`."""
    root = math.sqrt(1 / expansion)
    return (1 - root) ** 2, (1 + root) ** 2
