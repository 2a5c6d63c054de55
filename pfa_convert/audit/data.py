"""Where the data of a tensor comes from: Parameters, constants, or activations; kept by piece of memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Memory = tuple[str, int]


class Kind(IntEnum):
    """What a tensor's values depend on; the kind of a result is the largest of its operands'.

    CONSTANT: on buffers and numbers in the code. NOISE: on random numbers as well. LEARNED: on Parameters as
    well. ACTIVATION: on the model's inputs as well.
    """

    CONSTANT = 0
    NOISE = 1
    LEARNED = 2
    ACTIVATION = 3


@dataclass(frozen=True)
class Data:
    """What is known of a tensor's values: their kind, and the names of the Parameters they came from.

    An activation has Parameters too where it is a weight that activations scaled. It is `whole` if it has
    the weight's own shape, so that it is no signal that a weight scaled.
    """

    kind: Kind
    parameters: frozenset[str] = frozenset()
    whole: bool = False


NOTHING = frozenset[str]()
CONSTANT, NOISE, ACTIVATION = Data(Kind.CONSTANT), Data(Kind.NOISE), Data(Kind.ACTIVATION)


def joined(data: Iterable[Data]) -> Data:
    """Return what is known of values computed from all of these."""
    data = list(data)
    kind = max((one.kind for one in data), default=Kind.CONSTANT)
    if kind is not Kind.LEARNED:
        return Data(kind)
    return Data(kind, NOTHING.union(*(one.parameters for one in data)))


def memory_of(tensor: Tensor) -> Memory:
    """Return what tells the piece of memory that a tensor's values lie in; views of it share that."""
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # a sparse tensor, say, has none
        return "object", id(tensor)
    if tensor.device.type == "meta" or isinstance(tensor, FakeTensor) or not storage.data_ptr():
        return "storage", int(storage._cdata)
    return str(tensor.device), storage.data_ptr()


class Origins:
    """What is known of each piece of memory, by the Parameters and constants at first.

    Memory that nobody mentioned is an activation's. What is learned is kept alive, so that its memory is
    not given to another tensor.
    """

    def __init__(self, parameters: dict[str, Tensor], constants: Iterable[Tensor]) -> None:
        self._data: dict[Memory, Data] = {memory_of(tensor): CONSTANT for tensor in constants}
        self._kept: list[Any] = []
        self._parameters: dict[Memory, list[tuple[int, int, Data]]] = {}
        for name, parameter in parameters.items():
            start, end = _extent(parameter)
            data = Data(Kind.LEARNED, frozenset([name]))
            self._parameters.setdefault(memory_of(parameter), []).append((start, end, data))

    def of(self, tensor: Tensor) -> Data:
        """Return what is known of a tensor."""
        if tensor.numel() == 0:
            return CONSTANT
        memory = memory_of(tensor)
        parts = self._parameters.get(memory)
        if parts is None:
            return self._data.get(memory, ACTIVATION)
        if len(parts) == 1:
            return parts[0][2]
        start, end = _extent(tensor)
        return joined(data for first, last, data in parts if start < last and first < end)

    def is_parameter(self, tensor: Tensor) -> bool:
        """Say whether a tensor lies in the memory of a Parameter."""
        return memory_of(tensor) in self._parameters

    def learn(self, tensor: Tensor, data: Data) -> None:
        """Note what a tensor's memory holds from now on; a Parameter's own stays what it is."""
        memory = memory_of(tensor)
        if memory in self._parameters:
            return
        self._data[memory] = data
        if memory[0] == "object":
            self._kept.append(tensor)
        elif data.kind is Kind.LEARNED:
            self._kept.append(tensor.untyped_storage())


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage, and the one behind the last."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return 0, 1
    start: Any = tensor.storage_offset()
    last = start + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return start * tensor.element_size(), (last + 1) * tensor.element_size()
