"""The gradient of a step on one GPU is the formula's.

Why it matters: on a GPU attention, layers (Transformer Engine's where it is installed), fused optimizer and memory
handling are other code than on a CPU. Where Transformer Engine or apex is installed, all cases accumulate gradients
in the products of linear layers; with a budget there are several micro-batches to add up.

The cases of tests/distributed/test_gradients.py that one rank can run, in float32, against transformers in float64
on the CPU. Not exercised: several GPUs, bf16.
"""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.gpu

CASES: dict[str, dict[str, Any]] = {
    "packed": {},
    "duplicated": {"form": "duplicated"},
    "budget 64": {"max_tokens": 64},
    "grpo": {"method": "grpo"},
    "sequence_mean": {"normalization": "sequence_mean"},
    "reduced meanwhile in buckets": {"max_tokens": 97, "overlap": True, "bucket": 5000},
    "experts budget 64": {"family": "qwen3_moe", "max_tokens": 64},
    "recompute selective": {"recompute": "selective"},
    "recompute full": {"recompute": "full"},
}


@pytest.fixture(scope="module")
def worker() -> Any:
    import gradient_worker

    return gradient_worker


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_exact(worker: Any, case: str) -> None:
    assert worker.gradient_error(worker.DEFAULT | CASES[case] | {"device": "cuda"}) < 1e-4


def test_a_mistake_is_seen(worker: Any) -> None:
    mistake = {"device": "cuda", "mistake": "rotary by storage index"}
    assert worker.gradient_error(worker.DEFAULT | mistake) > 1e-2
