"""From hidden states to log-probabilities and back, one chunk of the logits is alive at a time.

Why it matters: a vocabulary of 150,000 in float32 takes 600 MB per 1,000 tokens; they are what a run dies of.

Counted are the float32 tensors that live at once while the function runs, on one rank. Not exercised: what an
allocator adds, CUDA.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nemo_ibtpo.megatron.logprobs import tree_logprobs

TOKENS, VOCAB, HIDDEN, CHUNK = 256, 4096, 4, 32


class PeakFloat32(TorchDispatchMode):
    """Most bytes of float32 tensors made within the context that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.dtype is torch.float32:
                self._count(tensor)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        key, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if key not in self._counted:
            self._counted.add(key)
            self._alive += size
            self.peak = max(self.peak, self._alive)
            weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self._alive -= size


@pytest.fixture
def alone() -> Iterator[dist.ProcessGroup]:
    store = dist.TCPStore("localhost", 0, 1, is_master=True)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("with_entropies", [False, True])
def test_one_chunk_of_logits_is_alive(alone: dist.ProcessGroup, with_entropies: bool) -> None:
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    weight = torch.randn(VOCAB, HIDDEN, requires_grad=True)
    index = torch.arange(TOKENS)
    one_chunk = 4 * CHUNK * VOCAB
    # Beside it the rows that are read, sums of their gradient, and the weight's gradient; a little for the rest.
    limit = 1.15 * one_chunk + 4 * HIDDEN * (3 * TOKENS + VOCAB)
    with PeakFloat32() as forward:
        logprobs, entropies = tree_logprobs(
            hidden,
            weight,
            index,
            index,
            vocab_size=VOCAB,
            temperature=0.7,
            chunk_tokens=CHUNK,
            keep_logits=False,
            group=alone,
        )
    assert one_chunk <= forward.peak < limit
    loss = logprobs.sum() + entropies.sum() if with_entropies else logprobs.sum()
    with PeakFloat32() as backward:
        loss.backward()
    assert one_chunk <= backward.peak < limit
