"""What a rule is: named options with bounds, the state it starts from, and its pathway."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pfa_convert.errors import UserError
from pfa_convert.feedback.collapsed import Collapsed
from pfa_convert.feedback.layout import WeightLayout
from pfa_convert.feedback.pathway import NoState, Pathway
from pfa_convert.feedback.plastic import PlasticPathway
from pfa_convert.feedback.strategy import Choice, Strategy
from pfa_convert.registry import Registry
from pfa_convert.rules.draw import Draw


class Rules(Registry["type[Rule]"]):
    """The rules by name."""

    def register(self, name: str) -> Callable[[type[Rule]], type[Rule]]:
        """Return a decorator that files a rule under `name`, and calls it so."""
        file = super().register(name)

        def decorate(rule: type[Rule]) -> type[Rule]:
            rule.name = name
            return file(rule)

        return decorate

    def __getitem__(self, name: str) -> type[Rule]:
        """Return the rule called `name`, or what `package.module:Class` names.

        Raises:
            UserError: with the nearest names if there is none; for a class that is no rule.
        """
        rule = super().__getitem__(name)
        if not (isinstance(rule, type) and issubclass(rule, Rule)):
            problem = "is not a class that inherits from pfa_convert.rules.Rule"
            raise UserError(problem, where=f"rule {name!r}")
        return rule


RULES = Rules("rule", "pfa_convert.rules", plugins="pfa_convert.rules")


class Rule(BaseModel):
    """A definition of the feedback weight `F`; its fields are the options that a user may set.

    A subclass states `title`, `formula`, `source`, its `cost` beyond backpropagation's, and makes a Pathway
    and its first state. Its `name` is what finds it: the one that it is registered by, or `module:Class`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    title: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[str]
    strategies: ClassVar[tuple[str, ...]] = ("fixed",)

    strategy: str | None = Field(None, description="how the formula is computed; the rule's first by default")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}:{cls.__qualname__}"

    @property
    def choice(self) -> Choice:
        """The strategy that is used, and why."""
        if self.strategy is None:
            return Choice(Strategy(self.strategies[0]))
        return Choice(Strategy(self.strategy), "asked for by name")

    def for_model(self, layouts: Sequence[WeightLayout]) -> Rule:
        """Return the rule with what it must know of the whole model: `layouts` of the sites, in order."""
        return self

    def obstacle(self, layout: WeightLayout) -> str | None:
        """Say why the rule has no meaning for a weight of this layout; None where it has one."""
        return None

    def pathway(self, layout: WeightLayout) -> Pathway[Any] | None:
        """Return the pathway for a weight of this layout; None leaves the plain operation alone."""
        raise NotImplementedError

    def initial_state(self, layout: WeightLayout, draw: Draw) -> Any:
        """Return the first state, of the pathway's `state_type`, drawn with `draw`."""
        return NoState()

    def start(self, layout: WeightLayout, W: Tensor, draw: Draw) -> tuple[Pathway[Any], Any] | None:
        """Return the pathway of the chosen strategy with its first state for the present `W`.

        None leaves the plain operation alone.
        """
        pathway = self.pathway(layout)
        return None if pathway is None else (pathway, self.initial_state(layout, draw))


class PlasticRule(Rule):
    """A rule whose feedback weight learns with the forward weight; its pathway is a PlasticPathway."""

    strategies: ClassVar[tuple[str, ...]] = ("collapsed", "fused")

    start_norm: Literal["xavier", "weight"] = Field(
        "xavier", description="norm of the first F: as Xavier's initialiser has it, or that of the weight"
    )

    def pathway(self, layout: WeightLayout) -> PlasticPathway[Any]:
        """Return the pathway with a plastic tensor."""
        raise NotImplementedError

    def start(self, layout: WeightLayout, W: Tensor, draw: Draw) -> tuple[Pathway[Any], Any]:
        """Return the plastic pathway, or its closed form, with the first state."""
        pathway, state = self.drawn(layout, W, draw)
        return pathway, pathway.with_norm_of(W, state) if self.start_norm == "weight" else state

    def drawn(
        self, layout: WeightLayout, W: Tensor, draw: Draw
    ) -> tuple[PlasticPathway[Any] | Collapsed[Any], Any]:
        """Return the same with the norm of Xavier's initialiser."""
        pathway, state = self.pathway(layout), self.initial_state(layout, draw)
        if self.choice.strategy is Strategy.COLLAPSED:
            return pathway.closed_form(W, state)
        return pathway, state


class SparseRule(Rule):
    """A rule whose feedback can be made sparse by fixed Bernoulli masks."""

    feedback_density: float = Field(1.0, gt=0, le=1, description="share of feedback connections that exist")


def make_rule(name: str, options: Mapping[str, Any] | None = None, where: str | None = None) -> Rule:
    """Return the rule called `name` with the given options.

    Raises:
        UserError: for an unknown rule, option or strategy, or a value out of its bounds.
    """
    options = dict(options or {})
    rule_class = RULES[name]
    where = where or f"rule {name!r}"
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
