"""The only update of a step needs no pass for the old policy: it learns the same, and the gate still holds.

Why it matters: that pass is a third of a step's forward work. The mismatch of engine and actor, which was measured
in it, decides whether the weights may change at all.

Two pipeline stages, of which only the last sees log-probabilities. Not exercised: GPUs; that gradients are right is
test_gradients.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed.launch import run_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output: Path = tmp_path_factory.mktemp("updates") / "results.json"
    return run_ranks(2, "updates_worker.py", output)


def test_the_same_is_learned_without_the_pass(results: dict[str, Any]) -> None:
    assert results["same_weights"]
    assert results["metrics_differ"] == []
    assert 0.2 < results["judged"] < 0.5
    assert results["mismatch"] == pytest.approx(results["expected_mismatch"], rel=1e-12)


def test_the_gate_stops_before_the_weights_change(results: dict[str, Any]) -> None:
    message = "engine and actor disagree: mismatch/token_mult_prob_error is"
    for refusals in results["refusals"]:  # of each rank
        assert all(refusal.startswith(message) for refusal in refusals), refusals
        assert len(set(refusals)) == 1, "both ways measure the same"
