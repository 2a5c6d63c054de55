"""Tying the feedback weights to the optimizer: they forget at the rate at which it lets the weights decay."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pfa_convert.errors import UserError
from pfa_convert.feedback.collapsed import Collapsed
from pfa_convert.feedback.coupled import Coupled, CoupledOptimizer
from pfa_convert.feedback.coupling_check import owner_of_each, refuse_incomplete, refuse_wrapper
from pfa_convert.feedback.finding import feedback_weights
from pfa_convert.feedback.kept import kept
from pfa_convert.feedback.plastic import PlasticPathway
from pfa_convert.feedback.strategy import Choice, Strategy
from pfa_convert.feedback.weight import FeedbackWeight

CHECK_INTERVAL = 100
"""Steps between two looks at whether `K` is forgotten, which cost a synchronisation."""


class Coupling:
    """The handle that `couple` returns; `strategy` tells what was chosen for each weight, and why.

    After each step of an optimizer it advances `s` of that optimizer's weights: once, where a class's step
    calls that of its base. `steps` counts those of the first optimizer: a checkpoint keeps it, for it decides
    when `K` is looked at.
    """

    def __init__(
        self, weights: dict[str, Tensor], choices: dict[str, Choice], followed: list[CoupledOptimizer]
    ) -> None:
        self.choices = choices
        self._weights = weights
        self.steps = 0
        self._followed = followed
        self._keeping = 0
        self._begun: set[int] = set()
        self._hooks = [
            hook
            for one in followed
            for hook in (
                one.optimizer.register_step_pre_hook(self._before_step),
                one.optimizer.register_step_post_hook(self._after_step),
            )
        ]
        for coupled, owner in self._members():
            coupled.feedback.optimizer, coupled.feedback.as_drawn = owner.owner, False

    @property
    def strategy(self) -> dict[str, str]:
        """The strategy of each weight by name, with a reason where there is something to say."""
        return {name: str(choice) for name, choice in self.choices.items()}

    def __str__(self) -> str:
        """Return a line for each weight: strategy, `s` (how much of the start is left), steps until 1 %.

        Raises:
            UserError: if the optimizer is gone, which the handle does not hold.
        """
        collapsed = {
            id(coupled.weight): (coupled, owner) for owner in self._followed for coupled in owner.collapsed
        }
        rows = [("weight", "left", "steps to 1 %", "strategy")]
        for name, weight in self._weights.items():
            s, steps = "", ""
            if id(weight) in collapsed:
                coupled, owner = collapsed[id(weight)]
                s, steps = owner.outlook(coupled)
            rows.append((name, s, steps, self.strategy[name]))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"{name:<{widths[0]}}  {s:>{widths[1]}}  {steps:>{widths[2]}}  {strategy}"
            for name, s, steps, strategy in rows
        )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Compute every `F` once for all passes within, forward and backward, as in gradient accumulation.

        It holds as many more numbers as the weights of `pfa` have; for rules whose `F` costs nothing it does
        nothing. No weight may change within: a step of the optimizer is refused, and any other change that
        PyTorch counts is an error at the end. It does not count writes to `.data`, another Parameter in a
        weight's place, or other weights given to `torch.func.functional_call`.

        Raises:
            UserError: if a weight has changed, or the handle was removed.

        Examples:
            >>> from pfa_convert import convert
            >>> model = convert(nn.Sequential(nn.Linear(4, 3)), "pfa")
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> handle = couple(model, optimizer)
            >>> with handle.kept():
            ...     for _ in range(4):
            ...         model(torch.randn(2, 4)).sum().backward()
            >>> optimizer.step()
        """
        if not self._hooks:
            raise UserError("the handle was removed: it follows no optimizer, and cannot keep F")
        self._keeping += 1
        try:
            with kept(self._collapsed()):
                yield
        finally:
            self._keeping -= 1

    def remove(self) -> None:
        """Stop following the optimizer; the feedback weights keep their `s`, and can be coupled again."""
        while self._hooks:
            self._hooks.pop().remove()
        for coupled, _ in self._members():
            coupled.feedback.optimizer = None

    def forget_all(self) -> None:
        """Drop every `K` now, as happens by itself once it has decayed; for measuring what then remains."""
        for coupled in self._collapsed():
            coupled.feedback.forget()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, with the model's and the optimizer's, follows nothing: hooks are not copied."""
        return {**self.__dict__, "_hooks": [], "_begun": set(), "_keeping": 0}

    def _collapsed(self) -> Iterable[Coupled]:
        return (coupled for owner in self._followed for coupled in owner.collapsed)

    def _of(self, optimizer: Optimizer) -> Iterable[CoupledOptimizer]:
        return (owner for owner in self._followed if owner.owner() is optimizer)

    def _members(self) -> Iterable[tuple[Coupled, CoupledOptimizer]]:
        return ((c, owner) for owner in self._followed for c in (*owner.collapsed, *owner.literal))

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._keeping:
            raise UserError("a step while feedback weights are kept: it comes after `with handle.kept()`")
        self._begun.add(id(optimizer))
        for owner in self._of(optimizer):
            owner.begin()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) not in self._begun:
            return
        self._begun.remove(id(optimizer))
        for owner in self._of(optimizer):
            owner.advance()
            owner.forget_literally()
        recording = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if optimizer is self._followed[0].owner() and not recording:
            self.count_step()

    def count_step(self) -> None:
        """Count a step, and now and then drop what is forgotten; for each replay of a step in a CUDA graph.

        Other steps are counted by themselves.
        """
        self.steps += 1
        if self.steps % CHECK_INTERVAL == 0:
            for owner in self._followed:
                owner.forget_if_small()


def couple(
    model: nn.Module,
    optimizer: Optimizer,
    *others: Optimizer,
    forgetting: float | None = None,
    collapse: bool = False,
) -> Coupling:
    """Let the plastic feedback weights follow the optimizer: exact, and free.

    A plastic feedback weight receives what its weight receives, and forgets at the rate at which the
    optimizer lets the weight decay. Known are SGD, the optimizers of PyTorch and timm that decay beside
    their update (AdamW and its kind), and those given to `register_decay`, with any schedule in each group
    of parameters. Where no decay reaches the weight by itself, nothing is forgotten; `strategy` of the
    handle says so.
    Call it before the first step, after moving the model to its device.

    Args:
        model: a converted model.
        optimizer: the optimizer of its weights.
        others: more optimizers, where one has a part of the weights only (Muon and AdamW, say).
        forgetting: steps in which the feedback weights forget their start down to `1/e`, beside what they
            forget as the weights decay. After each step `R` moves a part of the way to `B^T W`:
            `R <- R + (B^T W - R) / forgetting`, so `s <- (1 - 1/forgetting) s`. This hands a little of `W`
            itself over, which the paper's rule does not; it is for optimizers whose decay is too weak to
            forget by (docs/transformers.md).
        collapse: use the closed form for weights of the strategies `fused` and `explicit` too.

    Returns:
        A handle; keep it for a checkpoint's `steps`, or to `remove` the coupling.

    Raises:
        UserError: if the model has no feedback weights, is coupled already, or the optimizer misses
            some of its parameters or has made steps; if two optimizers have the same parameter, or one is
            none of PyTorch's; for a `forgetting` below 1.

    Examples:
        >>> import torch
        >>> from pfa_convert import convert
        >>> model = convert(nn.Sequential(nn.Linear(4, 3)), "pfa")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
        >>> couple(model, optimizer).strategy
        {'0.weight': 'collapsed'}
    """
    if forgetting is not None and not (isinstance(forgetting, (int, float)) and forgetting >= 1):
        raise UserError(f"forgetting: must be at least 1 step, not {forgetting!r}")
    optimizers = [optimizer, *others]
    for one in optimizers:
        refuse_wrapper(one)
    found = list(feedback_weights(model))
    if not found:
        raise UserError("nothing to couple: the model has no feedback weights; convert it first")
    if any(feedback.coupled for _, _, feedback in found):
        raise UserError("the model is coupled to an optimizer already")
    followed = [CoupledOptimizer(weakref.ref(one), forgetting) for one in optimizers]
    owner_of = owner_of_each(followed)
    for name, weight, feedback in found:
        refuse_incomplete(name, weight, feedback, owner_of)
    choices: dict[str, Choice] = {}
    for name, weight, feedback in found:
        if collapse and isinstance(feedback.pathway, PlasticPathway):
            _collapse(weight, feedback, optimizers)
        choices[name] = _follow(weight, feedback, owner_of.get(weight))
    return Coupling({name: weight for name, weight, _ in found}, choices, followed)


def _follow(weight: nn.Parameter, feedback: FeedbackWeight, owner: CoupledOptimizer | None) -> Choice:
    """Have a weight's feedback follow the optimizer of the weight, if it is plastic; say how, and why."""
    if isinstance(feedback.pathway, Collapsed):
        if owner is None:  # the weight does not learn
            return feedback.choice
        owner.collapsed.append(Coupled(weight, feedback))
        return replace(feedback.choice, reason=owner.decay(owner.group_of_each()[weight]).reason)
    if isinstance(feedback.pathway, PlasticPathway) and owner is not None:
        owner.literal.append(Coupled(weight, feedback))
    if not feedback.pathway.plastic:
        return Choice(Strategy.FIXED, "the rule has no plastic state")
    return feedback.choice


def _collapse(weight: Tensor, feedback: FeedbackWeight, optimizers: list[Optimizer]) -> None:
    plastic = set(feedback.parameters())
    feedback.collapse(weight)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["params"][:] = [parameter for parameter in group["params"] if parameter not in plastic]
