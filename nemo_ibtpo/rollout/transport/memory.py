"""Memory that the ranks of a host and the processes of their engines share, with room for every weight of the model.

It is laid out once and is nobody's file: an anonymous memory file that the kernel frees with the last process that
maps it. What was written last stays there for an engine that has to be started again. Weights that vLLM holds as one
matrix lie one behind the other, so that it can read them as one.
"""

from __future__ import annotations

import math
import mmap
import os
import socket
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

_ALIGNMENT = 64
# What vLLM puts into one matrix, in its order.
_MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_PLACE_IN_MATRIX = {part: f"{parts[0]}.{i}" for parts in _MERGED for i, part in enumerate(parts)}


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """Where a weight lies in the memory.

    Attributes:
        name: its Hugging Face name.
        shape: of the full tensor.
        offset: of its first byte.
    """

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """What another process needs to find weights in the memory.

    Attributes:
        path: where it can open the memory file, as long as the process lives that made this.
        tensors: what lies in it.
        dtype: torch's name of the weights' dtype.
    """

    path: str
    tensors: tuple[SharedTensor, ...]
    dtype: str

    def map(self, pinned: bool) -> dict[str, torch.Tensor]:
        """The full tensors by Hugging Face name; they share the memory.

        Args:
            pinned: let GPUs copy to and from it directly.
        """
        fd = os.open(self.path, os.O_RDWR)
        dtype: torch.dtype = getattr(torch, self.dtype)
        memory = torch.frombuffer(mmap.mmap(fd, 0), dtype=dtype)
        os.close(fd)
        if pinned:
            _pin(memory)
        weights = {}
        for tensor in self.tensors:
            start = tensor.offset // dtype.itemsize
            weights[tensor.name] = memory[start : start + math.prod(tensor.shape)].reshape(tensor.shape)
        return weights


class HostMemory:
    """The memory as a rank sees it.

    Args:
        shapes: of the full weights by Hugging Face name.
        dtype: of the weights.
        path: where another rank of this host has it; None makes a new one.
        pinned: let GPUs copy to and from it directly.

    Attributes:
        layout: what lies where, for other processes.
        weights: the full tensors by Hugging Face name.
        state: ``empty`` before the first update, ``partial`` within one or after one that did not come to its end.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, path: str | None = None, pinned: bool = False
    ) -> None:
        tensors, size = lay_out(shapes, dtype)
        if path is None:
            self._fd = os.memfd_create("nemo_ibtpo_weights")
            os.ftruncate(self._fd, size)
        else:
            self._fd = os.open(path, os.O_RDWR)
        dtype_name = str(dtype).removeprefix("torch.")
        self.layout = MemoryLayout(f"/proc/{os.getpid()}/fd/{self._fd}", tensors, dtype_name)
        self.weights = self.layout.map(pinned)
        self.state = "empty"

    def close(self) -> None:
        """Let go of the memory, which goes on for others that have it."""
        self.weights.clear()
        os.close(self._fd)


def lay_out(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> tuple[tuple[SharedTensor, ...], int]:
    """A place for every weight, one after the other, and the bytes of all."""
    tensors, offset = [], 0
    for name in sorted(shapes, key=_matrix_first):
        tensors.append(SharedTensor(name, shapes[name], offset))
        offset += -(-math.prod(shapes[name]) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return tuple(tensors), offset


def this_host() -> str:
    """What processes have in common that can share memory: machine and process namespace."""
    return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"


def _matrix_first(name: str) -> tuple[str, ...]:
    """Sorts the parts of a matrix next to each other."""
    *path, layer, kind = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", name)
    return (*path, kind, _PLACE_IN_MATRIX.get(layer, layer))


def _pin(memory: torch.Tensor) -> None:
    # torch can only pin memory that it allocates itself.
    failed = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    if int(failed):
        warnings.warn(
            f"weights' host memory is not pinned (CUDA error {int(failed)}): refits are slower", stacklevel=2
        )


def layouts_differ(layout: Sequence[SharedTensor], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """How weights differ from those of a model: the first that is missing, unknown or of another shape; or None."""
    brought = {tensor.name: tensor.shape for tensor in layout}
    for name in sorted(brought.keys() | shapes.keys()):
        if name not in shapes:
            return f"unknown weight {name!r}; the model has no such parameter"
        if name not in brought:
            return f"weight {name!r} is missing"
        if brought[name] != shapes[name]:
            return f"{name!r} has shape {brought[name]}, the model's is {shapes[name]}"
    return None
