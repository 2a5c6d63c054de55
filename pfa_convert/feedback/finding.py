"""The feedback states of a model, each with the weight that it belongs to now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from pfa_convert.feedback.weight import FeedbackWeight


def feedback_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, FeedbackWeight]]:
    """Yield name, weight and feedback state of each weight that has one, once for a shared one."""
    seen: set[nn.Module] = set()
    for holder_name, holder in model.named_modules():
        for child in holder._modules.values():
            if not isinstance(child, FeedbackWeight) or child in seen:
                continue
            parameter = present_parameter(holder, child)
            if parameter is not None:
                seen.add(child)
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
