"""Vocabulary-parallel log-probabilities equal float64 on the whole vocabulary, whatever the shards and chunks.

Why it matters: ratios, KL terms and the mismatch with the engine are differences of these numbers; an error of 1e-2
in a log-probability is a policy that looks off by 1 %.

TP 1, 2 and 4 on gloo, from hidden states; a vocabulary that does not divide, its padding filled with what would win;
one to five chunks; repeated rows, as at branches; logits of thousands; gradients of log-probabilities, of entropies
and of both with respect to hidden states and the output layer's weight; the same renormalised over sets of tokens
that were kept. Not exercised: CUDA (tests/gpu).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed.launch import run_ranks

Results = dict[str, dict[str, float]]

# bf16 factors get bf16 gradients: 8 bits of mantissa.
GRADIENT_LIMIT = {"ordinary": 1e-6, "extreme": 1e-6, "bf16": 1e-2}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    output: Path = tmp_path_factory.mktemp("logprobs") / "results.json"
    return run_ranks(4, "logprobs_worker.py", output)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("loss", ["logprobs", "entropies", "both"])
@pytest.mark.parametrize("kind", ["ordinary", "extreme", "bf16"])
@pytest.mark.parametrize(("sets", "count"), [("", 12), ("truncated-", 4)])
def test_matches_float64(results: Results, sets: str, count: int, kind: str, loss: str, size: int) -> None:
    cases = {name: result for name, result in results.items() if name.startswith(f"{sets}{kind}-{loss}-tp{size}-")}
    assert len(cases) == count
    for name, result in cases.items():
        assert result["logprob"] < 2e-6, name
        assert result["entropy"] < 2e-6, name
        assert result["gradient"] < GRADIENT_LIMIT[kind], name
        assert result["padding_gradient"] == 0.0, name
        assert result["float32"] == 1.0, name
