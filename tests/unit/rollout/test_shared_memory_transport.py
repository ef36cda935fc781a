"""When GPU memory is handed back: before an engine wakes, and again before it takes memory for keys and values.

The order of calls, on a CPU: torch is made to believe in a GPU for the moment of the question. Not exercised: that
memory is freed by it, and how much.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from local_weights import LocalWeights, one_rank

from nemo_ibtpo.rollout.transport.host_writer import HostWriter
from nemo_ibtpo.rollout.transport.memory import HostMemory
from nemo_ibtpo.rollout.transport.shared_memory import SharedMemoryTransport


class Recorder:
    """Takes weights like an engine."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def attach_memory(self, memory: HostMemory) -> None:
        self.memory = memory

    def load_from_memory(self, names: Sequence[str]) -> None:
        self.events.append("load")

    def finish_load(self) -> None:
        assert self.memory.state == "complete", "a restart would find no weights"
        self.events.append("finish")


def test_memory_is_released_before_the_engine_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Recorder()
    source = LocalWeights({name: torch.ones(8) for name in "abc"})
    with one_rank():
        transport = SharedMemoryTransport(HostWriter(source, [0], bucket_bytes=32))
        transport.attach(engine)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: engine.events.append("release"))
        transport.publish(source)
        transport.close()
    assert engine.events == ["release", "load", "load", "load", "release", "finish"]
