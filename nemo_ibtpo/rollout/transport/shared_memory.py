"""Weights through memory of the host, which every engine there reads."""

from __future__ import annotations

import torch

from nemo_ibtpo.rollout.transport.host_writer import HostWriter
from nemo_ibtpo.rollout.transport.protocol import TakesHostMemory, WeightSource


class SharedMemoryTransport:
    """Each host has one copy of the weights, written once by its ranks; engines load while it is written.

    Args:
        writer: of this rank.
    """

    def __init__(self, writer: HostWriter) -> None:
        self._writer = writer
        self._engine: TakesHostMemory | None = None

    def attach(self, engine: TakesHostMemory) -> None:
        """See :class:`~nemo_ibtpo.rollout.transport.protocol.WeightTransport`."""
        assert self._writer.memory is not None
        engine.attach_memory(self._writer.memory)
        self._engine = engine

    def publish(self, source: WeightSource) -> None:
        """See :class:`~nemo_ibtpo.rollout.transport.protocol.WeightTransport`."""
        release_device_memory(self._writer)
        for names in self._writer.write(source):
            if self._engine is not None and names:
                self._engine.load_from_memory(names)
        source.release_weights()
        release_device_memory(self._writer)
        if self._engine is not None:
            self._engine.finish_load()

    def close(self) -> None:
        """See :class:`~nemo_ibtpo.rollout.transport.protocol.WeightTransport`."""
        self._writer.close()


def release_device_memory(writer: HostWriter) -> None:
    """Hand freed memory back to the GPU, on all ranks of the host: an engine is about to take it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        writer.barrier()
