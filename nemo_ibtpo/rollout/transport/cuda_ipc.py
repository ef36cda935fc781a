"""Weights through CUDA IPC: an engine on one GPU reads them where its rank has gathered them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.rollout.transport.host_writer import HostWriter
from nemo_ibtpo.rollout.transport.protocol import TakesHandles, WeightSource
from nemo_ibtpo.rollout.transport.shared_memory import release_device_memory

_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


class CudaIpcTransport:
    """Gathers one decoder layer at a time on this rank's GPU, from which the engine copies it.

    The host's memory gets the weights too, for an engine that has to be started again while the ranks are at work.

    Args:
        writer: of this rank; the ranks of each host hold the whole model between them.
    """

    def __init__(self, writer: HostWriter) -> None:
        self._writer = writer
        self._engine: TakesHandles | None = None

    def attach(self, engine: TakesHandles) -> None:
        """See :class:`~nemo_ibtpo.rollout.transport.protocol.WeightTransport`."""
        assert self._writer.memory is not None
        engine.attach_memory(self._writer.memory)
        self._engine = engine

    def publish(self, source: WeightSource) -> None:
        """See :class:`~nemo_ibtpo.rollout.transport.protocol.WeightTransport`."""
        for _ in self._writer.write(source):
            pass
        release_device_memory(self._writer)
        for layer in _layers(source):
            if self._engine is not None:
                # vLLM keeps what it has got of a layer until it has all of it: a layer is never cut.
                self._engine.load_from_handles([(name, _handle(tensor)) for name, tensor in layer])
        release_device_memory(self._writer)
        if self._engine is not None:
            self._engine.finish_load()

    def close(self) -> None:
        """See :class:`~nemo_ibtpo.rollout.transport.protocol.WeightTransport`."""
        self._writer.close()


def refuse_expandable_segments() -> None:
    """Look at the settings of torch's allocator in the environment.

    Raises:
        UserError: they ask for expandable segments, whose memory another process cannot open everywhere.
    """
    for variable in _ALLOCATOR_VARIABLES:
        if "expandable_segments:true" in os.environ.get(variable, "").lower():
            raise UserError(
                f"{variable}={os.environ[variable]}: an engine on one GPU reads new weights through CUDA IPC, which "
                "expandable segments do not serve on every machine; take expandable_segments:True out"
            )


def _layers(source: WeightSource) -> Iterator[list[tuple[str, torch.Tensor]]]:
    for _, layer in groupby(source.named_weights(), key=lambda named: _layer(named[0])):
        tensors = [(name, tensor.detach().contiguous()) for name, tensor in layer]
        torch.cuda.current_stream().synchronize()
        yield tensors


def _layer(name: str) -> str:
    """The decoder layer that a weight belongs to; other weights stand alone."""
    found = re.match(r"model\.layers\.\d+\.", name)
    return found[0] if found else name


def _handle(tensor: torch.Tensor) -> Any:
    from torch.multiprocessing.reductions import reduce_tensor

    return reduce_tensor(tensor)[1]
