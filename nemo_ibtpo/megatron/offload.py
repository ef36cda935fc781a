"""The actor's state in host memory while engines sample.

A tensor that is parked is a tensor of host memory until it is brought back: checkpoints are written from there and
loaded to there, and every view of the device's storage is valid again afterwards. Gradient buffers are given up and
made again, by Megatron's own method; nothing of them outlives an optimizer step.

Megatron moves optimizer state by giving each tensor another storage. With a model in float32 that cuts the main
weights, which are views of the model's, off from them; and what it copies to is not pinned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from torch import Tensor

from nemo_ibtpo.megatron.compat import renew_gradient_hooks

Level = Literal["none", "optimizer", "all"]


class Offload:
    """Parks and brings back what a rank holds.

    Args:
        level: ``none`` parks nothing, ``optimizer`` optimizer state and gradient buffers, ``all`` the weights too.
        chunks: this rank's model chunks.
        optimizer: over these chunks, or None.
    """

    def __init__(
        self, level: Level, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer | None
    ) -> None:
        self._level, self._chunks, self._optimizer = level, chunks, optimizer
        self._weights, self._training = _Parking(), _Parking()
        self._has_gradients = True

    def park_training_state(self) -> None:
        """Optimizer state and gradient buffers, if they are to be off-loaded."""
        if self._level == "none":
            return
        weights = {_key(tensor) for tensor in self._parameters()}
        self._training.park(tensor for tensor in self._optimizer_tensors() if _key(tensor) not in weights)
        if self._has_gradients:
            for chunk in self._chunks:
                chunk.offload_grad_buffers()
            self._has_gradients = False

    def park_weights(self) -> None:
        """The weights, if they are to be off-loaded."""
        if self._level == "all":
            own = list(self._parameters())
            keys = {_key(tensor) for tensor in own}
            views = (tensor for tensor in self._optimizer_tensors() if _key(tensor) in keys)  # a float32 model's
            self._weights.park([*own, *views])

    def bring_weights(self) -> None:
        """Weights are on the device when this returns."""
        if self._weights.bring():
            for chunk in self._chunks:
                renew_gradient_hooks(chunk)

    def bring_all(self) -> None:
        """Everything is on the device when this returns; gradients are zero if they were given up."""
        self.bring_weights()
        self._training.bring()
        if not self._has_gradients:
            for chunk in self._chunks:
                chunk.restore_grad_buffers()
            self._has_gradients = True

    def _parameters(self) -> Iterable[Tensor]:
        return (parameter for chunk in self._chunks for parameter in chunk.parameters())

    def _optimizer_tensors(self) -> Iterable[Tensor]:
        """Main weights and moments."""
        if self._optimizer is None:
            return
        chained = isinstance(self._optimizer, ChainedOptimizer)
        for part in self._optimizer.chained_optimizers if chained else [self._optimizer]:
            if part.optimizer is None:  # a rank of which it holds nothing
                continue
            for group in part.optimizer.param_groups:
                yield from group["params"]
            for state in part.optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, Tensor) and value.ndim)


class _Parking:
    """Tensors whose storages are in host memory for the time being."""

    def __init__(self) -> None:
        self._parked: list[tuple[Tensor, Tensor]] = []  # a tensor, and a view of its storage on the device
        self._storages: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []  # on the device, on the host
        self._pinned: dict[Any, torch.UntypedStorage] = {}  # kept, since pinning takes longer than copying

    def park(self, tensors: Iterable[Tensor]) -> None:
        """Move to host memory; tensors that are there already stay."""
        if self._parked:
            return
        on_host: dict[int, torch.UntypedStorage] = {}
        for number, tensor in enumerate({id(tensor): tensor for tensor in tensors}.values()):  # each once
            device = tensor.untyped_storage()
            if device._cdata not in on_host:
                host = self._host_storage((number, device.nbytes()), device)
                host.copy_(device, non_blocking=True)
                on_host[device._cdata] = host
                self._storages.append((device, host))
            self._parked.append((tensor, tensor.detach()))
            tensor.data = _view(on_host[device._cdata], tensor)
        self._wait()
        for device, _ in self._storages:
            device.resize_(0)

    def bring(self) -> bool:
        """Move what is parked back; whether there was anything."""
        anything = bool(self._parked)
        for device, host in self._storages:
            device.resize_(host.nbytes())
            device.copy_(host, non_blocking=True)
        for tensor, on_device in self._parked:
            tensor.data = on_device
        self._wait()
        self._parked, self._storages = [], []
        return anything

    def _host_storage(self, key: Any, like: torch.UntypedStorage) -> torch.UntypedStorage:
        if key not in self._pinned:
            pinned = like.device.type == "cuda"
            self._pinned[key] = torch.empty(like.nbytes(), dtype=torch.uint8, pin_memory=pinned).untyped_storage()
        return self._pinned[key]

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _view(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """What ``like`` is of its storage, of another one of the same size."""
    empty = torch.empty(0, dtype=like.dtype, device=storage.device)
    return empty.set_(storage, like.storage_offset(), like.size(), like.stride())
