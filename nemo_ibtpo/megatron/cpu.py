"""Megatron-Core on CPUs over gloo, for development, tests and small runs.

Megatron-Core asks ``torch.cuda`` for its device, allocates with ``device="cuda"`` and asserts that gradients are
``torch.cuda.FloatTensor``. Inside ``cuda_on_cpu()`` these questions get the CPU's answer; outside nothing is
changed, so that an engine or a data loader in the same process never sees it. On a GPU it is never entered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock  # used as the standard library's scoped attribute replacement

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


class _NullStream:
    """Stands where Megatron asks for a stream or an event; CPU work is synchronous, so there is nothing to do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> _NullStream:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def record_event(self, event: Any = None) -> _NullStream:
        return self

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _is_cuda(device: Any) -> bool:
    # A tuple: every call of torch comes by here, and `str | torch.device` is made each time.
    return isinstance(device, (str, torch.device)) and str(device).startswith("cuda")


class _CudaToCpu(TorchFunctionMode):
    """Rewrites requests for the device ``cuda`` and answers ``Tensor.type()`` as a CUDA tensor would."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.set_rng_state(state)


def _sizes_on_cpu(tensor: Any, as_numpy: bool = False, **_: Any) -> Any:
    """Megatron's token dispatcher turns sizes into numpy on their way from a GPU, and gloo takes no tensors."""
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor


_REPLACED: dict[str, Any] = {
    "current_device": lambda: _CPU,
    "set_device": _nothing,
    "synchronize": _nothing,
    "empty_cache": _nothing,
    "manual_seed": torch.manual_seed,
    "get_rng_state": _get_rng_state,
    "set_rng_state": _set_rng_state,
    "current_stream": _NullStream,
    "default_stream": _NullStream,
    "stream": _NullStream,
    "Stream": _NullStream,
    "Event": _NullStream,
}


@contextlib.contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """Within this context Megatron-Core runs on the CPU; it may be entered again while it is active."""
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.moe import token_dispatcher

    if torch.cuda.set_device is _nothing:  # already active
        yield
        return
    with (
        mock.patch.multiple(torch.cuda, **_REPLACED),
        mock.patch.multiple(megatron_random, _get_cuda_rng_state=_get_rng_state, _set_cuda_rng_state=_set_rng_state),
        mock.patch.object(token_dispatcher, "maybe_move_tensor_to_cpu", _sizes_on_cpu),
        _CudaToCpu(),
    ):
        yield
