"""Memory that an engine's owner and its process share, with room for every weight of the model.

It is laid out once, from the shapes in the model's files, and is nobody's file: an anonymous memory file that the
kernel frees with the last process that maps it. What was written last stays there for an engine that has to be
started again.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.rollout.vllm_messages import SharedTensor

_ALIGNMENT = 64


def read_shapes(model_path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a directory's safetensors files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(model_path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def lay_out(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> tuple[SharedTensor, ...]:
    """A place for every weight, one after the other."""
    layout, offset = [], 0
    for name, shape in shapes.items():
        layout.append(SharedTensor(name, shape, offset))
        offset += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return tuple(layout)


def map_weights(fd: int, layout: Sequence[SharedTensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights in the memory file, by name; they share its memory."""
    memory = mmap.mmap(fd, 0)
    return {
        tensor.name: torch.frombuffer(
            memory, dtype=dtype, count=math.prod(tensor.shape), offset=tensor.offset
        ).reshape(tensor.shape)
        for tensor in layout
    }


class WeightSegment:
    """The owner's side.

    Args:
        shapes: of all weights, by Hugging Face name.
        tied_embeddings: whether ``lm_head.weight`` is the embedding; it may then be given or not, but not differ.
        dtype: the engine's.

    Attributes:
        fd: descriptor of the memory file, for the engine's process to inherit.
        layout: what lies where.
        is_complete: whether it holds the weights of a whole update.
        is_mixed: whether an update did not come to its end.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], *, tied_embeddings: bool, dtype: torch.dtype) -> None:
        self._tied = {"lm_head.weight": "model.embed_tokens.weight"} if tied_embeddings else {}
        self.layout = lay_out({name: shape for name, shape in shapes.items() if name not in self._tied}, dtype)
        last = self.layout[-1]
        self.fd = os.memfd_create("nemo_ibtpo_weights")
        os.ftruncate(self.fd, last.offset + max(math.prod(last.shape) * dtype.itemsize, 1))
        self._weights = map_weights(self.fd, self.layout, dtype)
        self.is_complete = self.is_mixed = False

    @torch.no_grad()
    def checked(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Keep each weight and pass it on, a tied copy left out.

        Raises:
            UserError: names the weight that is missing, unknown, given twice or of another shape. The memory then
                holds some new and some old weights.
        """
        self.is_complete, self.is_mixed = False, True
        seen: set[str] = set()
        for name, tensor in weights:
            target = self._weights.get(self._tied.get(name, name))
            if target is None:
                raise UserError(f"weight update: unknown weight {name!r}; the model has no such parameter")
            if name in seen:
                raise UserError(f"weight update: weight {name!r} is given twice")
            seen.add(name)
            if tensor.shape != target.shape:
                raise UserError(
                    f"weight update: {name!r} has shape {tuple(tensor.shape)}, the model's is {tuple(target.shape)}"
                )
            if name in self._tied:
                twin = self._tied[name]
                if twin not in seen or not torch.equal(target, tensor.to(target)):
                    raise UserError(f"weight update: {name!r} is tied to {twin!r} in the model but differs from it")
                continue
            target.copy_(tensor)
            yield name, tensor
        missing = sorted(self._weights.keys() - seen)
        if missing:
            raise UserError(
                f"weight update: {len(missing)} of {len(self._weights)} weights are missing: {', '.join(missing[:5])}"
            )
        self.is_complete, self.is_mixed = True, False

    def close(self) -> None:
        """Let go of the memory."""
        self._weights.clear()
        os.close(self.fd)
