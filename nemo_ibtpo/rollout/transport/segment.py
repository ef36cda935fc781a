"""Memory that the ranks of a host and the processes of their engines share, with room for every weight of the model.

It is laid out once, from the shapes in the model's files, and is nobody's file: an anonymous memory file that the
kernel frees with the last process that maps it. What was written last stays there for an engine that has to be
started again. Weights that vLLM holds as one matrix lie one behind the other, so that it can read them as one.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.rollout.vllm.messages import SharedTensor

_ALIGNMENT = 64


# What vLLM puts into one matrix, in its order.
_MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_PLACE_IN_MATRIX = {part: f"{parts[0]}.{i}" for parts in _MERGED for i, part in enumerate(parts)}


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
    for name in sorted(shapes, key=_matrix_first):
        layout.append(SharedTensor(name, shapes[name], offset))
        offset += -(-math.prod(shapes[name]) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return tuple(layout)


def _matrix_first(name: str) -> tuple[str, ...]:
    """Sorts the parts of a matrix next to each other."""
    *path, layer, kind = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", name)
    return (*path, kind, _PLACE_IN_MATRIX.get(layer, layer))


def map_weights(fd: int, layout: Sequence[SharedTensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights in the memory file, by name; they share its memory."""
    memory = torch.frombuffer(mmap.mmap(fd, 0), dtype=dtype)
    weights = {}
    for tensor in layout:
        start = tensor.offset // dtype.itemsize
        weights[tensor.name] = memory[start : start + math.prod(tensor.shape)].reshape(tensor.shape)
    return weights


class WeightSegment:
    """The memory as a rank sees it.

    Args:
        model_path: directory of a Hugging Face model with the same weights.
        dtype: the engine's.
        path: where another rank of this host has it; None makes a new one.

    Attributes:
        fd: descriptor of the memory file, for the engine's process to inherit.
        layout: what lies where.
        weights: the full tensors by Hugging Face name, without a tied ``lm_head.weight``.
        is_complete: whether it holds the weights of a whole update.
        is_mixed: whether an update did not come to its end.
    """

    def __init__(self, model_path: Path, dtype: torch.dtype, path: str | None = None) -> None:
        tied = json.loads((model_path / "config.json").read_text()).get("tie_word_embeddings", False)
        self._tied = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}
        shapes = read_shapes(model_path)
        self.layout = lay_out({name: shape for name, shape in shapes.items() if name not in self._tied}, dtype)
        if path is None:
            last = self.layout[-1]
            self.fd = os.memfd_create("nemo_ibtpo_weights")
            os.ftruncate(self.fd, last.offset + max(math.prod(last.shape) * dtype.itemsize, 1))
        else:
            self.fd = os.open(path, os.O_RDWR)
        self.weights = map_weights(self.fd, self.layout, dtype)
        self.is_complete = self.is_mixed = False

    @property
    def path(self) -> str:
        """Where other processes of this host can open it, as long as this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @torch.no_grad()
    def checked(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Keep each weight, unless it lies here already, and pass it on; a tied copy is left out.

        Raises:
            UserError: names the weight that is missing, unknown, given twice or of another shape. The memory then
                holds some new and some old weights.
        """
        self.is_complete, self.is_mixed = False, True
        seen: set[str] = set()
        for name, tensor in weights:
            target = self.weights.get(self._tied.get(name, name))
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
            if tensor is not target:
                target.copy_(tensor)
            yield name, tensor
        missing = sorted(self.weights.keys() - seen)
        if missing:
            raise UserError(
                f"weight update: {len(missing)} of {len(self.weights)} weights are missing: {', '.join(missing[:5])}"
            )
        self.is_complete, self.is_mixed = True, False

    def close(self) -> None:
        """Let go of the memory, which goes on for others that have it."""
        self.weights.clear()
        os.close(self.fd)


def this_host() -> str:
    """What processes have in common that can share memory: machine and process namespace."""
    return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"


def segment_of_host(
    model_path: Path, dtype: torch.dtype, engine_ranks: Collection[int], host: str
) -> WeightSegment | None:
    """The segment that all ranks and engines of a host share; None on a host without an engine.

    A collective over all ranks.

    Args:
        engine_ranks: ranks that own an engine.
        host: :func:`this_host`, alike on ranks that can share memory.
    """
    hosts: list[str] = [host] * dist.get_world_size()
    dist.all_gather_object(hosts, host)
    needed = host in {hosts[rank] for rank in engine_ranks}
    first = hosts.index(host)
    segment = WeightSegment(model_path, dtype) if needed and dist.get_rank() == first else None
    paths = [segment.path if segment else ""] * dist.get_world_size()
    dist.all_gather_object(paths, segment.path if segment else "")
    if needed and segment is None:
        segment = WeightSegment(model_path, dtype, paths[first])
    dist.barrier()  # the one that made it may not end before all have it
    return segment
