"""`F` kept for several backward passes, as the batches of gradient accumulation are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from pfa_convert.errors import UserError
from pfa_convert.feedback.collapsed import Collapsed
from pfa_convert.feedback.coupled import Coupled
from pfa_convert.feedback.given import GivenPathway


@contextmanager
def kept(members: Iterable[Coupled]) -> Iterator[None]:
    """Compute each `F` that takes a product of weights once, for all passes within.

    The state stays where it is, so that what is saved or loaded within is the state.

    Raises:
        UserError: if a weight has changed by the end, where PyTorch has counted the change.
    """
    with ExitStack() as stack:
        for member in members:
            if _takes_product(member):
                stack.enter_context(_kept(member))
        yield


@contextmanager
def _kept(member: Coupled) -> Iterator[None]:
    weight, feedback = member.weight, member.feedback
    pathway, version = feedback.pathway, weight._version
    feedback.F = feedback.feedback_weight(weight)
    feedback.pathway = GivenPathway(pathway.layout)
    try:
        yield
    finally:
        feedback.pathway = pathway
        del feedback.F
    if weight._version != version:
        raise UserError(CHANGED)


CHANGED = "a weight has changed while its feedback weight was kept: the gradients since then are wrong"


def _takes_product(member: Coupled) -> bool:
    pathway = member.feedback.pathway
    return isinstance(pathway, Collapsed) and pathway.takes_product(member.feedback.named_state())
