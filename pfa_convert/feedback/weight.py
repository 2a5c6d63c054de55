"""The module that holds one weight's feedback state beside it in the converted model."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pfa_convert.errors import UserError
from pfa_convert.feedback.collapsed import CollapsedPathway
from pfa_convert.feedback.pathway import Pathway

FEEDBACK_ATTRIBUTE = "feedback_of_{parameter}"
"""The submodule that holds a parameter's feedback state, in the module that holds the parameter."""


class FeedbackWeight(nn.Module):
    """The feedback state of one forward weight, and the pathway that reads it.

    `parameter_name` is the weight's name in the module beside it; `strategy` is set where one was asked
    for by name; `optimizer` refers to the one that the state is coupled to.

    Fixed tensors (`B`, masks) are buffers, plastic ones (`R`) Parameters. A plain checkpoint, which has
    none of them, loads strictly all the same: the state then stays as it is.
    """

    pathway: Pathway

    def __init__(
        self,
        pathway: Pathway,
        state: Mapping[str, Tensor],
        parameter_name: str = "weight",
        strategy: str | None = None,
    ) -> None:
        super().__init__()
        self.parameter_name = parameter_name
        self.strategy = strategy
        self.optimizer: weakref.ref[Optimizer] | None = None
        self.adopt(pathway, state)

    def adopt(self, pathway: Pathway, state: Mapping[str, Tensor]) -> None:
        """Replace pathway and state; the keys of `state` are the pathway's names."""
        for name in [*self._parameters, *self._buffers]:
            delattr(self, name)
        self.pathway = pathway
        for name in pathway.names:
            if name in pathway.plastic:
                self.register_parameter(name, nn.Parameter(state[name]))
            else:
                self.register_buffer(name, state[name])

    def state(self) -> tuple[Tensor, ...]:
        """Return the state tensors in the pathway's order."""
        return tuple(getattr(self, name) for name in self.pathway.names)

    @torch.no_grad()
    def feedback_weight(self, W: Tensor) -> Tensor:
        """Return the present `F`, of the shape of `W`."""
        return self.pathway.feedback_weight(W, *self.state())

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the optimizer: a copy is not coupled to it."""
        return {**self.__dict__, "optimizer": None}

    def extra_repr(self) -> str:
        """Show the pathway and its state's shapes."""
        shapes = ", ".join(f"{name}={tuple(getattr(self, name).shape)}" for name in self.pathway.names)
        return f"{type(self.pathway).__name__}, {shapes}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        if not saved:
            return
        self._take_form_of(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def _take_form_of(self, saved: Mapping[str, Tensor]) -> None:
        """Collapse, or drop what is forgotten, where the saved state is in that form."""
        pathway, state = self.pathway, self.state()
        if "forgetting" in saved and "forgetting" not in pathway.names:
            some_weight = state[0].new_zeros(pathway.layout.shape)
            pathway, state = pathway.collapse(some_weight, *state)
        if "K" in saved and saved["K"].numel() == 0 and isinstance(pathway, CollapsedPathway):
            pathway, state = pathway.forget(*state)
        if pathway is not self.pathway:
            self.adopt(pathway, dict(zip(pathway.names, state, strict=True)))


def feedback_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, FeedbackWeight]]:
    """Yield name, weight and feedback state of each weight that has one, once for a shared one."""
    for holder_name, holder in model.named_modules():
        for child in holder.children():
            parameter = present_parameter(holder, child) if isinstance(child, FeedbackWeight) else None
            if isinstance(child, FeedbackWeight) and parameter is not None:
                path = f"{holder_name}.{parameter}" if holder_name else parameter
                yield path, holder.get_parameter(parameter), child


def present_parameter(holder: nn.Module, feedback: FeedbackWeight) -> str | None:
    """Return the path, from the module that holds it, of the Parameter that a feedback state belongs to now.

    It is another one where the weight was parametrized, or is no longer, since the conversion; None where a
    hook computes the weight from others.
    """
    known = feedback.parameter_name.split(".")
    name = known[1] if known[0] == "parametrizations" else known[0]
    if holder._parameters.get(name) is not None:
        return name
    chains = holder._modules.get("parametrizations")
    chain = None if chains is None else chains._modules.get(name)
    raw = None if chain is None else raw_name(chain, feedback.pathway.layout.shape)
    return raw and f"parametrizations.{name}.{raw}"


def raw_name(chain: nn.Module, shape: Sequence[int]) -> str | None:
    """Return which original of a parametrization has the shape of the weight; of several, the last."""
    fitting = [n for n, p in chain._parameters.items() if p is not None and p.shape == tuple(shape)]
    return fitting[-1] if fitting else None


def learning_between_steps(model: nn.Module) -> list[tuple[nn.Parameter, FeedbackWeight]]:
    """Return the weights whose feedback weight learns in phases, with their feedback state."""
    return [
        (weight, feedback)
        for _, weight, feedback in feedback_weights(model)
        if type(feedback.pathway).phase is not Pathway.phase
    ]


@torch.no_grad()
def feedback_phase(model: nn.Module) -> None:
    """Let the feedback weights learn that do so between the steps: `wm` and `ia` from noise, and `sa`.

    Call it after `optimizer.step()`, as often as the rule needs; sites of other rules are left alone.

    Raises:
        UserError: if the model has no such feedback weight.
    """
    learning = learning_between_steps(model)
    if not learning:
        raise UserError(
            "no feedback weight of this model learns between the steps; those of wm, ia and sa do"
        )
    for weight, feedback in learning:
        feedback.pathway.phase(weight, *feedback.state())
