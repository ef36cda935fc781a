"""The actor's life on real ranks: reference policy, off-loading, late gathering, learning rate, clipping, bf16, NaN.

Why it matters: each of these fails silently. A reference policy that moves makes the KL term 0, bf16 without fp32
main weights drops every small update, and a NaN that one rank keeps to itself destroys the weights of all. Weights
that are gathered late are old for whoever reads them too early: an engine, a checkpoint, the copy of the policy.

Four gloo ranks, Megatron's own schedule and optimizer. Not exercised: GPUs, loss scaling (bf16 needs none).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed.launch import run_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    output: Path = tmp_path_factory.mktemp("actor") / "results.json"
    return run_ranks(4, "actor_worker.py", output)


@pytest.mark.parametrize("case", ["reference_policy", "reference_policy experts"])
def test_reference_policy_stays_and_the_policy_moves(results: dict[str, dict[str, Any]], case: str) -> None:
    assert results[case] == {
        "losses_fall": True,
        "reference_is_initial": True,
        "policy_moved": True,
        "weights_come_back": True,
    }


@pytest.mark.parametrize("kind", ["bf16", "fp32", "unsharded bf16"])
@pytest.mark.parametrize("level", ["optimizer", "all"])
def test_off_loading_changes_nothing_and_empties_the_device(
    results: dict[str, dict[str, Any]], level: str, kind: str
) -> None:
    result = results[f"offload {level} {kind}"]
    assert result["same"]
    assert result["on the device"] == 0
    if level == "all":
        assert result["weights parked"] >= (4 if kind == "fp32" else 2) * result["parameters"]
    else:
        assert result["weights parked"] == 0
    # Two moments, and main weights beside bf16 ones, over two data-parallel ranks where they are sharded.
    of_a_parameter = (8 if kind == "fp32" else 12) / (1 if "unsharded" in kind else 2)
    assert result["training state parked"] >= 0.9 * of_a_parameter * result["parameters"]


def test_weights_that_were_on_another_device_are_trained(results: dict[str, dict[str, Any]]) -> None:
    assert results["off another device"]


@pytest.mark.parametrize("layout", ["pp2-vpp2-dp2 bf16", "tp2-sp-dp2-ep2"])
def test_weights_gathered_in_the_next_forward_pass_are_the_same(
    results: dict[str, dict[str, Any]], layout: str
) -> None:
    assert [name for name, holds in results[f"gathered meanwhile {layout}"].items() if not holds] == []


def test_learning_rate_warms_up_from_the_first_step_and_decays(results: dict[str, dict[str, Any]]) -> None:
    # Warm-up over 4 of 10 steps to 1.0, then a line to 0 at step 10.
    expected = [0.25, 0.5, 0.75, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0]
    assert results["learning_rate"]["lr"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", ["clipping", "clipping experts", "clipping experts ep1", "clipping context"])
def test_gradient_norm_and_sums_are_global(results: dict[str, dict[str, Any]], case: str) -> None:
    clipping = results[case]
    assert clipping["clipped"] == pytest.approx(clipping["norm"] / 10, rel=1e-4)
    assert clipping["reported"] == clipping["tokens"]


@pytest.mark.parametrize("case", ["aux_loss", "aux_loss tp2-pp2", "aux_loss cp2"])
def test_load_balancing_loss_is_the_mean_over_tokens(results: dict[str, dict[str, Any]], case: str) -> None:
    assert results[case]["largest"] > 0
    assert results[case]["error"] < 1e-5


def test_bf16_keeps_small_updates_in_fp32(results: dict[str, dict[str, Any]]) -> None:
    bf16 = results["bf16"]
    assert bf16["dtype"] == "torch.bfloat16"
    assert bf16["moved_after_1"] < 0.2
    assert bf16["moved_after_15"] > 0.5


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("nan_loss", "loss of the step is nan"),
        ("nan_gradient", "gradient is not finite"),
        ("hidden", "hidden of the step is inf"),
    ],
)
def test_every_rank_refuses_what_is_not_finite(results: dict[str, dict[str, Any]], case: str, what: str) -> None:
    result = results[case]
    assert all("weights were left as they were" in message for message in result["messages"])
    assert any(what in message for message in result["messages"])
    assert result["weights_kept"]
