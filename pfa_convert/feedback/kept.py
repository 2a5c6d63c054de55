"""`F` kept for several backward passes, as the batches of gradient accumulation are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from pfa_convert.errors import UserError
from pfa_convert.feedback.coupled import Coupled
from pfa_convert.feedback.given import GivenFeedback


@contextmanager
def kept(members: Iterable[Coupled]) -> Iterator[None]:
    """Compute each `F` that takes a product of weights once, for all passes within.

    The state stays where it is, so that what is saved within is the state. What is loaded within counts at
    once: `F` is computed in each pass again.

    Raises:
        UserError: if a weight has changed by the end, where PyTorch has counted the change.
    """
    with ExitStack() as stack:
        for member in members:
            if member.takes_product and member.feedback.kept is None:
                stack.enter_context(_kept(member))
        yield


@contextmanager
def _kept(member: Coupled) -> Iterator[None]:
    weight, feedback = member.weight, member.feedback
    version = weight._version
    feedback.kept = GivenFeedback(feedback.feedback_weight(weight))
    try:
        yield
    finally:
        feedback.kept = None
    if weight._version != version:
        raise UserError(CHANGED)


CHANGED = "a weight has changed while its feedback weight was kept: the gradients since then are wrong"
