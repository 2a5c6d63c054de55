"""What a rule is: named options with bounds, the state it starts from, and its pathway."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pfa_convert.errors import UserError
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.pathway import Pathway
from pfa_convert.registry import Registry

RULES: Registry[type[Rule]] = Registry("rule", "pfa_convert.rules", plugins="pfa_convert.rules")


class Rule(BaseModel):
    """A definition of the feedback weight `F`; its fields are the options that a user may set.

    A subclass states `name`, `title`, `formula`, `source` and its `cost` beyond backpropagation's, and makes
    a Pathway and its first state.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    title: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[str]
    strategies: ClassVar[tuple[str, ...]] = ("fused",)
    two_steps: ClassVar[bool] = False
    """Whether the error passes neurons of its own, which no forward connection reaches."""

    strategy: str | None = Field(None, description="how the formula is computed; the rule's first by default")

    @property
    def kept_strategy(self) -> str | None:
        """The strategy that coupling must keep, because it was asked for by name."""
        return None if self.strategy == "collapsed" else self.strategy

    def for_model(self, layouts: Sequence[WeightLayout]) -> Rule:
        """Return the rule with what it must know of the whole model: `layouts` of the sites, in order."""
        return self

    def obstacle(self, layout: WeightLayout) -> str | None:
        """Say why the rule has no meaning for a weight of this layout; None where it has one."""
        return None

    def pathway(self, layout: WeightLayout) -> Pathway | None:
        """Return the pathway for a weight of this layout; None leaves the plain operation alone."""
        raise NotImplementedError

    def initial_state(self, layout: WeightLayout, draw: Draw) -> dict[str, Tensor]:
        """Return the first value of each of the pathway's state tensors, drawn with `draw`."""
        return {}


class SparseRule(Rule):
    """A rule whose feedback can be made sparse by fixed Bernoulli masks."""

    feedback_density: float = Field(1.0, gt=0, le=1, description="share of feedback connections that exist")


class Draw:
    """Random tensors of one weight: the same for the same seed and name on every device and dtype.

    Args:
        seed: what the generator starts from.
        like: the forward weight, whose device and dtype every drawn tensor gets.
    """

    def __init__(self, seed: int, like: Tensor) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._like = like

    def uniform(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Return a tensor of the given shape, uniform around 0 with standard deviation `std`."""
        bound = math.sqrt(3.0) * std

        def fill() -> Tensor:
            # NumPy asks the system for huge pages, which makes a first touch several times faster.
            memory = torch.from_numpy(numpy.empty(shape, dtype=numpy.float32))
            return memory.uniform_(-bound, bound, generator=self._generator)

        return self._place(shape, fill)

    def orthogonal(self, groups: int, size: int) -> Tensor:
        """Return `(groups, size, size)`: a random orthogonal matrix for each group, Haar distributed."""

        def haar() -> Tensor:
            gaussian = torch.randn(groups, size, size, generator=self._generator, dtype=torch.float64)
            Q, R = torch.linalg.qr(gaussian)
            return Q * torch.diagonal(R, dim1=-2, dim2=-1).sign().unsqueeze(-2)

        return self._place((groups, size, size), haar)

    def mask(self, shape: tuple[int, ...], density: float) -> Tensor:
        """Return a tensor that is 1 with probability `density` and 0 otherwise."""
        return self._place(shape, lambda: torch.empty(shape).bernoulli_(density, generator=self._generator))

    def seed(self) -> Tensor:
        """Return a random whole number, as a tensor without dimensions."""
        number = torch.randint(2**62, (), generator=self._generator)
        return number.to(self._like.device)

    def _place(self, shape: tuple[int, ...], make: Any) -> Tensor:
        if self._like.is_meta:
            return torch.empty(shape, dtype=self._like.dtype, device="meta")
        drawn: Tensor = make()
        return drawn.to(device=self._like.device, dtype=self._like.dtype)


def make_rule(name: str, options: Mapping[str, Any] | None = None, where: str | None = None) -> Rule:
    """Return the rule called `name` with the given options.

    Raises:
        UserError: for an unknown rule, option or strategy, or a value out of its bounds.
    """
    options = dict(options or {})
    rule_class = RULES[name]
    where = where or f"rule {name!r}"
    if not (isinstance(rule_class, type) and issubclass(rule_class, Rule)):
        raise UserError("is not a class that inherits from pfa_convert.rules.Rule", where=where)
    try:
        rule = rule_class(**options)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]) if first["loc"] else "options"
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"unknown option {option!r}", where=where, given=option, choices=rule_class.model_fields
            ) from None
        raise UserError(f"option {option!r}: {first['msg']}, given {first['input']!r}", where=where) from None
    if rule.strategy is not None and rule.strategy not in rule.strategies:
        raise UserError(
            f"strategy {rule.strategy!r} is not one of the rule's",
            where=where,
            given=rule.strategy,
            choices=rule.strategies,
        )
    return rule
