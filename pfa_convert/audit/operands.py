"""An operation's operands, and what is known of its result from what is known of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfa_convert.audit import operations as ops
from pfa_convert.audit.data import ACTIVATION, NOTHING, Data, Kind, joined
from pfa_convert.feedback.lookup import ALONG_A_DIMENSION


@dataclass(frozen=True)
class Operand:
    """An operation's operand: its name there, the tensor, and what is known of it."""

    name: str
    tensor: Tensor
    data: Data


def named_arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by their names in the operation's schema."""
    schema = getattr(func, "_schema", None)
    names: Iterator[str] = iter([argument.name for argument in schema.arguments] if schema else ())
    return {next(names, f"argument {index}"): value for index, value in enumerate(args)} | kwargs


def writes(func: Any, name: str, argument: str) -> bool:
    """Say whether an operation changes an argument; a batch norm changes its statistics untold."""
    if "batch_norm" in name and argument.startswith("running_"):
        return True
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    return any(
        one.name == argument and one.alias_info is not None and one.alias_info.is_write
        for one in schema.arguments
    )


def after_writing(name: str, written: Operand, operands: Sequence[Operand], data: Data) -> Data:
    """Return what is known of memory that an operation wrote to; `data` are those of its result."""
    if name in ("copy", "fill", "zero") and _is_whole_storage(written.tensor):
        sources = [one.data for one in operands if one is not written]
        return sources[0] if len(sources) == 1 else joined(sources)
    return data


def _is_whole_storage(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def weights_among(factors: Sequence[Operand]) -> tuple[list[Operand], bool]:
    """Return the factors of a product that are weights, and whether they are applied to activations.

    A weight that activations have scaled is one in a convolution's weight's place, or if it still has its
    own shape; next to a weight that they have not, it may be a signal as well.
    """
    learned = [factor for factor in factors if factor.data.kind is Kind.LEARNED]
    scaled = [factor for factor in factors if _is_scaled_weight(factor)]
    if any(factor.data.kind in (Kind.ACTIVATION, Kind.NOISE) and factor not in scaled for factor in factors):
        return learned + scaled, True
    if learned:
        return learned + [factor for factor in scaled if factor.name == "weight"], bool(scaled)
    return scaled, len(scaled) > 1


def _is_scaled_weight(factor: Operand) -> bool:
    mixed = factor.data.kind is Kind.ACTIVATION and bool(factor.data.parameters)
    return mixed and (factor.name == "weight" or factor.data.whole)


def mixture(name: str, operands: Sequence[Operand]) -> Data:
    """Return what is known of an operation's result that activations took part in.

    It keeps the Parameters of a weight that activations scale, until anything but such a thing happens. The
    matrices that they look up in a stack are weights as they were.
    """
    if _takes_matrices(name, operands):
        return Data(Kind.LEARNED, operands[0].data.parameters)
    if name not in ops.KEEPS_MIXTURES:
        return ACTIVATION
    largest = max(one.tensor.numel() for one in operands)
    mixed = [one for one in operands if one.data.parameters]
    whole = max(one.tensor.numel() for one in mixed) == largest and all(
        one.data.whole or one.data.kind is Kind.LEARNED for one in mixed
    )
    if name not in ops.MULTIPLICATIONS:
        if not whole or name not in ops.BEGINS_MIXTURES:
            mixed = [one for one in mixed if one.data.kind is Kind.ACTIVATION]
        whole = whole and name in ops.BEGINS_MIXTURES
    if not mixed:
        return ACTIVATION
    return Data(Kind.ACTIVATION, NOTHING.union(*(one.data.parameters for one in mixed)), whole)


def _takes_matrices(name: str, operands: Sequence[Operand]) -> bool:
    """Say whether an operation looks up something of two or more dimensions in what is learned."""
    stack, *indices = operands
    if stack.data.kind is not Kind.LEARNED or name not in ("index", *ALONG_A_DIMENSION):
        return False
    taken = sum(one.tensor.dim() if one.tensor.dtype is torch.bool else 1 for one in indices)
    return stack.tensor.dim() - taken >= 2


def large_dimensions(tensor: Tensor, dimensions: int) -> set[int]:
    """Return a tensor's dimensions of more than one element, as numbered in a larger one that it fits to."""
    missing = dimensions - tensor.dim()
    return {missing + index for index, size in enumerate(tensor.shape) if size > 1}


def whole_memory(tensor: Tensor) -> Tensor:
    """Return all of a tensor's memory, of which it may be a part, as bytes."""
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return whole.set_(tensor.untyped_storage())
