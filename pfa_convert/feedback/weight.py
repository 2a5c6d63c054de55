"""The module that holds one weight's feedback state beside it in the converted model."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pfa_convert.errors import UserError
from pfa_convert.feedback.collapsed import Collapsed
from pfa_convert.feedback.given import GivenFeedback
from pfa_convert.feedback.pathway import Pathway, Tensors
from pfa_convert.feedback.plastic import PlasticPathway
from pfa_convert.feedback.strategy import Choice, Strategy

FEEDBACK_ATTRIBUTE = "feedback_of_{parameter}"
"""The submodule that holds a parameter's feedback state, in the module that holds the parameter."""


class FeedbackWeight(nn.Module):
    """The feedback state of one forward weight, and the pathway that reads it.

    `parameter_name` is the weight's name in the module beside it; `choice` is how `F` is computed, and why;
    `optimizer` refers to the one that the state is coupled to. `as_drawn` holds until a checkpoint is
    loaded or an optimizer followed, `initialised` while the state is not the uninitialised memory that
    `to_empty` leaves. `kept` is `F` while `Coupling.kept` holds it; `copied` says that there is or was a
    copy, which may average the state of this one.

    Fixed tensors (`B`, masks) are buffers, a plastic one (`R`) is a Parameter, which learns if the weight
    does. A plain checkpoint, which has none of them, loads strictly all the same: the state stays as it is.
    """

    pathway: Pathway[Any]
    kept: GivenFeedback | None = None
    copied = False

    def __init__(
        self,
        pathway: Pathway[Any],
        state: Any,
        choice: Choice,
        parameter_name: str = "weight",
        learns: bool = True,
    ) -> None:
        super().__init__()
        self.parameter_name = parameter_name
        self.choice = choice
        self.optimizer: weakref.ref[Optimizer] | None = None
        self.as_drawn = self.initialised = True
        self.adopt(pathway, state, learns)

    def adopt(self, pathway: Pathway[Any], state: Any, learns: bool = True) -> None:
        """Replace pathway and state."""
        for name in [*self._parameters, *self._buffers]:
            delattr(self, name)
        self.pathway = pathway
        self.kept = None
        for name, tensor in zip(pathway.names, pathway.tensors_of(state), strict=True):
            if name == pathway.plastic and tensor is not None:
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=learns))
            else:
                self.register_buffer(name, tensor)

    def state(self) -> Tensors:
        """Return the state's tensors in the pathway's order, as autograd takes them.

        Raises:
            UserError: if they were never initialised.
        """
        if not self.initialised:
            raise UserError(NEVER_INITIALISED)
        return tuple(getattr(self, name) for name in self.pathway.names)

    def named_state(self) -> Any:
        """Return the state as the pathway's methods take it."""
        return self.pathway.state_of(self.state())

    def way(self) -> tuple[Pathway[Any], Tensors]:
        """Return the way of the error, and the state that it reads."""
        return (self.pathway, self.state()) if self.kept is None else self.kept.way()

    @property
    def elements(self) -> int:
        """The number of elements of the state."""
        return sum(tensor.numel() for tensor in self.state() if tensor is not None)

    def forward(self, x: Any) -> Any:
        """Return `x`: nothing is done to it where a forward calls all that its module holds, one by one."""
        return x

    @property
    def coupled(self) -> bool:
        """Whether the state follows an optimizer that still exists."""
        return self.optimizer is not None and self.optimizer() is not None

    @torch.no_grad()
    def feedback_weight(self, W: Tensor) -> Tensor:
        """Return the present `F`, of the shape of `W`; of a sharded `W`, on all processes together."""
        if self.kept is not None:
            return self.kept.F
        return self.pathway.feedback_weight(whole(W), self.named_state())

    @torch.no_grad()
    def collapse(self, W: Tensor) -> None:
        """Put the closed form in the place of a plastic state, for the present `W`."""
        assert isinstance(self.pathway, PlasticPathway)
        self.choice = Choice(Strategy.COLLAPSED)
        self.adopt(*self.pathway.closed_form(W.detach(), self.named_state()))

    def forget(self) -> None:
        """Drop `K` of a collapsed state."""
        assert isinstance(self.pathway, Collapsed)
        self.adopt(*self.pathway.forget(self.named_state()))

    def remember(self) -> None:
        """Make room for the `K` of a state that is not forgotten yet."""
        assert isinstance(self.pathway, Collapsed)
        state = self.named_state()
        K = state.K.new_zeros(self.pathway.layout.shape)
        self.adopt(replace(self.pathway, forgotten=False), state._replace(K=K))

    def extra_repr(self) -> str:
        """Show the pathway and its state's shapes."""
        held = {**self._parameters, **self._buffers}
        shapes = ", ".join(f"{name}={tuple(t.shape)}" for name, t in held.items() if t is not None)
        return f"{type(self.pathway).__name__}, {shapes}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is the original's alone: its optimizer, a kept `F`."""
        self.copied = True
        return {**self.__dict__, "optimizer": None, "kept": None}

    def _apply(self, fn: Any, recurse: bool = True) -> FeedbackWeight:
        were_meta, exact = self._on_meta(), self._buffers.get("forgetting")
        super()._apply(fn, recurse)
        self.kept = None
        moved = self._buffers.get("forgetting")
        if exact is not None and moved is not None and moved.dtype != exact.dtype:
            # In half precision a step would not change `s`.
            self._buffers["forgetting"] = (moved if exact.is_meta else exact).to(moved.device, exact.dtype)
        self.initialised = self.initialised and not (were_meta and not self._on_meta())
        return self

    def _on_meta(self) -> bool:
        return any(tensor.is_meta for tensor in (*self.parameters(), *self.buffers()))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        saved = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        if not saved:
            assigned = local_metadata.get("assign_to_params_buffers", False)
            if not self.initialised or (assigned and self._on_meta()):
                raise UserError(NEVER_INITIALISED, where=prefix.rstrip("."))
            return
        self._take_form_of(saved, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        loaded = self._buffers.get("forgetting")
        if loaded is not None:
            self._buffers["forgetting"] = loaded.double()  # in half precision a step would not change `s`
        self.kept = None
        self.as_drawn, self.initialised = False, True

    @torch.no_grad()
    def _take_form_of(self, saved: Mapping[str, Tensor], prefix: str) -> None:
        """Collapse, drop what is forgotten, or make room for what is not, as the saved state does."""
        collapsed = isinstance(self.pathway, Collapsed)
        if collapsed and "forgetting" not in saved:
            raise UserError(
                "the checkpoint holds a plastic feedback weight, of an earlier version or of the strategy "
                "'fused': convert with options={'strategy': 'fused'} to load it",
                where=prefix.rstrip("."),
            )
        if "forgetting" in saved and isinstance(self.pathway, PlasticPathway):
            if self.coupled:
                raise UserError(
                    "the checkpoint holds the closed form, and the model is coupled with a plastic feedback "
                    "weight: load before couple",
                    where=prefix.rstrip("."),
                )
            tensors = (*self.parameters(), *self.buffers())
            self.collapse(tensors[0].new_zeros(self.pathway.layout.shape))
        if "K" in saved and isinstance(self.pathway, Collapsed):
            forgotten = saved["K"].numel() == 0
            if forgotten != self.pathway.forgotten:
                (self.forget if forgotten else self.remember)()


NEVER_INITIALISED = (
    "the feedback state was converted on the meta device and never initialised, and the checkpoint has none: "
    "convert after to_empty and loading the weights"
)


def whole(W: Tensor) -> Tensor:
    """Return a weight, gathered from all processes if it is sharded among them (FSDP2); all must call."""
    gather = getattr(W, "full_tensor", None)
    return W if gather is None else gather()
