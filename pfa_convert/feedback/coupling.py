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
from pfa_convert.feedback.coupled import Coupled, CoupledGroup
from pfa_convert.feedback.coupling_check import group_of_each, refuse_incomplete, refuse_wrapper
from pfa_convert.feedback.decay import Decay, decay_of
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
        self,
        weights: dict[str, Tensor],
        choices: dict[str, Choice],
        groups: list[CoupledGroup],
        optimizers: list[Optimizer],
    ) -> None:
        self.choices = choices
        self._weights = weights
        self.steps = 0
        self._groups = groups
        self._first = weakref.ref(optimizers[0])
        self._keeping = 0
        self._begun: set[int] = set()
        self._hooks = [
            hook
            for optimizer in optimizers
            for hook in (
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            )
        ]
        for coupled, group in self._members():
            _tie(coupled.feedback, group.owner)

    @property
    def strategy(self) -> dict[str, str]:
        """The strategy of each weight by name, with a reason where there is something to say."""
        return {name: str(choice) for name, choice in self.choices.items()}

    def __str__(self) -> str:
        """Return a line for each weight: strategy, `s` (how much of the start is left), steps until 1 %.

        Raises:
            UserError: if the optimizer is gone, which the handle does not hold.
        """
        left = {
            id(coupled.weight): (coupled.feedback, group)
            for group in self._groups
            for coupled in group.collapsed
        }
        rows = [("weight", "left", "steps to 1 %", "strategy")]
        for name, weight in self._weights.items():
            s, steps = "", ""
            if id(weight) in left:
                feedback, group = left[id(weight)]
                s, steps = group.outlook(feedback.get_buffer("forgetting"))
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
            coupled.feedback.optimizer, coupled.feedback.as_drawn = None, False

    def forget_all(self) -> None:
        """Drop every `K` now, as happens by itself once it has decayed; for measuring what then remains."""
        for coupled in self._collapsed():
            coupled.feedback.forget()

    def _collapsed(self) -> Iterable[Coupled]:
        return (coupled for group in self._groups for coupled in group.collapsed)

    def _groups_of(self, optimizer: Optimizer) -> Iterable[CoupledGroup]:
        return (group for group in self._groups if group.owner() is optimizer)

    def _members(self) -> Iterable[tuple[Coupled, CoupledGroup]]:
        return ((coupled, group) for group in self._groups for coupled in (*group.collapsed, *group.literal))

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._keeping:
            raise UserError("a step while feedback weights are kept: it comes after `with handle.kept()`")
        self._begun.add(id(optimizer))
        for group in self._groups_of(optimizer):
            group.begin()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) not in self._begun:
            return
        self._begun.remove(id(optimizer))
        for group in self._groups_of(optimizer):
            group.advance()
            group.forget_literally()
        recording = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if optimizer is self._first() and not recording:
            self.count_step()

    def count_step(self) -> None:
        """Count a step, and now and then drop what is forgotten; for each replay of a step in a CUDA graph.

        Other steps are counted by themselves.
        """
        self.steps += 1
        if self.steps % CHECK_INTERVAL == 0:
            for group in self._groups:
                group.forget_if_small()


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
    groups = [
        CoupledGroup(weakref.ref(owner), index, group["params"], _decay(owner, group, forgetting), forgetting)
        for owner in optimizers
        for index, group in enumerate(owner.param_groups)
    ]
    group_of = group_of_each(groups)
    for name, weight, feedback in found:
        refuse_incomplete(name, weight, feedback, group_of)
    choices: dict[str, Choice] = {}
    for name, weight, feedback in found:
        if collapse and isinstance(feedback.pathway, PlasticPathway):
            _collapse(weight, feedback, optimizers)
        choices[name] = _follow(weight, feedback, group_of.get(weight))
    return Coupling({name: weight for name, weight, _ in found}, choices, groups, optimizers)


def _decay(optimizer: Optimizer, group: dict[str, Any], forgetting: float | None) -> Decay:
    decay = decay_of(optimizer, group)
    return decay if forgetting is None else decay.with_forgetting(forgetting)


def _follow(weight: nn.Parameter, feedback: FeedbackWeight, group: CoupledGroup | None) -> Choice:
    """Have a weight's feedback follow the group that the weight is in, if it is plastic; say how, and why."""
    if isinstance(feedback.pathway, Collapsed):
        if group is None:  # the weight does not learn
            return feedback.choice
        group.collapsed.append(Coupled(weight, feedback))
        return replace(feedback.choice, reason=group.decay.reason)
    if isinstance(feedback.pathway, PlasticPathway) and group is not None:
        group.literal.append(Coupled(weight, feedback))
    if not feedback.pathway.plastic:
        return Choice(Strategy.FIXED, "the rule has no plastic state")
    return feedback.choice


def _tie(feedback: FeedbackWeight, owner: weakref.ref[Optimizer]) -> None:
    feedback.optimizer = owner
    if feedback.watch is not None:
        feedback.watch.remove()
        feedback.watch = None


def _collapse(weight: Tensor, feedback: FeedbackWeight, optimizers: list[Optimizer]) -> None:
    plastic = set(feedback.parameters())
    feedback.collapse(weight)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["params"][:] = [parameter for parameter in group["params"] if parameter not in plastic]
