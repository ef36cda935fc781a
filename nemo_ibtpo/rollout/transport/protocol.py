"""How new weights get from the actor to the engines: what either side has to offer.

A transport knows neither Megatron nor vLLM. It asks the actor for its weights, in parts or whole, and hands them
to an engine in the way that the engine takes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from nemo_ibtpo.rollout.transport.memory import HostMemory


class WeightShard(Protocol):
    """A part of a Hugging Face weight, where a rank trains it.

    The part lies in the whole weight as ``whole.as_strided(tensor.shape, stride, offset)``.

    Attributes:
        name: Hugging Face name of the weight.
        shape: of the whole weight.
        stride, offset: of the part in the contiguous whole, in elements.
        tensor: the part, a view of the rank's parameter.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def stride(self) -> tuple[int, ...]: ...
    @property
    def offset(self) -> int: ...
    @property
    def tensor(self) -> torch.Tensor: ...


class WeightSource(Protocol):
    """What a transport asks of the actor."""

    def weight_shards(self) -> Sequence[WeightShard]:
        """The parts that this rank holds, all in one dtype; two ranks may hold the same part."""

    def release_weights(self) -> None:
        """Nobody uses these parts any more, and an engine may take the memory of the device."""

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, full tensor), on every rank; a collective that must be consumed to its end."""


class TakesTensors(Protocol):
    """An engine in the rank's own process."""

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace the weights and drop every cached prefix."""


class TakesHostMemory(Protocol):
    """An engine in a process that reads memory of the host."""

    def attach_memory(self, memory: HostMemory) -> None:
        """New weights, and those that a restarted engine begins with, lie in this memory from now on."""

    def load_from_memory(self, names: Sequence[str]) -> None:
        """Load these weights, which lie in the memory, without waiting; the first of an update wakes the engine."""

    def finish_load(self) -> None:
        """Wait until all weights are loaded, and drop every cached prefix."""


class TakesHandles(TakesHostMemory, Protocol):
    """An engine that also reads memory of this rank's GPU."""

    def load_from_handles(self, handles: Sequence[tuple[str, Any]]) -> None:
        """Load weights through CUDA IPC: (name, arguments of ``rebuild_cuda_tensor``); waits until they are read."""


class WeightTransport(Protocol):
    """Brings the actor's weights to the engines of all ranks. Making one is a collective over all ranks."""

    def attach(self, engine: Any) -> None:
        """This rank's engine gets the weights from now on; not called on a rank without one."""

    def publish(self, source: WeightSource) -> None:
        """Give every attached engine the weights that the actor has now; a collective over all ranks.

        An engine that sleeps is awake afterwards. The actor's freed GPU memory is handed back before.
        """

    def close(self) -> None:
        """Release memory; engines that have it mapped keep it."""
