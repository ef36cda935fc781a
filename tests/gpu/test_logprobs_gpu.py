"""Log-probabilities straight from hidden states on a GPU: exact, and the logits are held at no time.

Why it matters: bf16 matrix products with float32 results are a path of their own on a GPU, and the memory of held
logits is what the chunks are there to save.

The cases of tests/distributed/test_logprobs.py that one rank can run, against float64 on the CPU; the peak of memory
at a vocabulary of 151,936. Not exercised: several GPUs.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nemo_ibtpo.megatron.logprobs import tree_logprobs

pytestmark = pytest.mark.gpu

GRADIENT_LIMIT = {"ordinary": 1e-6, "extreme": 1e-6, "bf16": 1e-2}


@pytest.fixture(scope="module")
def worker() -> Any:
    import logprobs_worker
    from layouts import enter
    from parity_worker import actor_config

    enter(replace(actor_config(1, 1, False, None), device="cuda"))
    return logprobs_worker


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("loss", ["logprobs", "entropies", "both"])
@pytest.mark.parametrize("kind", ["ordinary", "extreme", "bf16"])
def test_matches_float64(worker: Any, kind: str, loss: str, kept: bool) -> None:
    for chunk, temperature in product((1, 1000), (0.6, 1.0)):
        errors = worker.errors(kind, chunk, temperature, loss, kept, dist.group.WORLD, "cuda")
        assert errors["logprob"] < 2e-6
        assert errors["entropy"] < 2e-6
        assert errors["gradient"] < GRADIENT_LIMIT[kind]


def test_logits_are_not_held(worker: Any) -> None:
    tokens, hidden_size, vocab = 4096, 256, 151936
    hidden = torch.randn(tokens, hidden_size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocab, hidden_size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    index = torch.arange(tokens, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    logprobs, _ = tree_logprobs(
        hidden,
        weight,
        index,
        index,
        vocab_size=vocab,
        temperature=1.0,
        chunk_tokens=128,
        keep_logits=False,
        group=dist.group.WORLD,
    )
    logprobs.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < tokens * vocab * 2 / 4  # a quarter of the logits in bf16
