"""The mismatch of engine and actor decides whether a run goes on.

By hand on one tree. That an update stops before the weights change is tests/distributed/test_updates.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from strategies import hand_tree

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.training.mismatch import Mismatch, measure, refuse_mismatch, total
from nemo_ibtpo.tree.packing import PackedBatch, pack_tree

RATIOS = [1.0, 0.5, 3.0, 2.0, 1.0, 1.0, 0.25]  # actor over engine, of the seven sampled tokens


def batch(ratios: list[float]) -> PackedBatch:
    packed = pack_tree(hand_tree())
    behaviour = np.full(len(packed), -1.0, dtype=np.float32)
    old = behaviour.copy()
    old[packed.in_loss] += np.log(np.array(ratios, dtype=np.float32))
    old[~packed.in_loss] = 50.0  # outside the loss: read by nobody
    return replace(packed, old_logprobs=old, behaviour_logprobs=behaviour)


def test_metrics_by_hand() -> None:
    metrics = measure([batch(RATIOS)], cap=2.5).metrics()
    r = np.array(RATIOS)
    assert metrics == pytest.approx(
        {
            "mismatch/token_mult_prob_error": (1 + 2 + 3 + 2 + 1 + 1 + 4) / 7,
            "mismatch/gen_kl_error": (r - np.log(r) - 1).mean(),
            "mismatch/importance_ratio_mean": 8.75 / 7,
            "mismatch/importance_ratio_max": 3.0,
            "mismatch/importance_truncated": 1 / 7,
            "mismatch/effective_sample_size": 8.25**2 / (7 * np.square([1, 0.5, 2.5, 2, 1, 1, 0.25]).sum()),
        },
        rel=1e-6,
    )
    assert measure([batch(RATIOS)], cap=0.0).truncated == 0


def test_ranks_and_updates_add_up() -> None:
    other = [1.0, 1.0, 1.0, 1.0, 4.0, 1.0, 1.0]
    parts = [measure([batch(RATIOS)], 2.5), measure([], 2.5), measure([batch(other)], 2.5)]
    assert total(parts) == measure([batch(RATIOS), batch(other)], 2.5)
    assert total(parts).tokens == 14
    assert total(parts).ratio_max == pytest.approx(4.0, rel=1e-6)


def test_a_piece_counts_the_tokens_of_its_own_loss() -> None:
    whole = batch(RATIOS)
    mask = whole.in_loss.copy()
    mask[:4] = False
    piece = replace(whole, in_loss=mask)
    assert measure([piece], 2.5).tokens == 5
    assert measure([replace(whole, in_loss=np.zeros_like(mask))], 2.5) == Mismatch()


def test_tokens_of_older_policies_weigh_but_are_not_judged() -> None:
    whole = batch(RATIOS)
    lag = np.zeros(len(whole), dtype=np.int64)
    lag[np.flatnonzero(whole.in_loss)[2:4]] = 1, 3  # ratios 3 and 2
    found = measure([replace(whole, lag=lag)], cap=2.5)
    assert found.metrics() == pytest.approx(
        measure([whole], 2.5).metrics()
        | {
            "mismatch/token_mult_prob_error": (1 + 2 + 1 + 1 + 4) / 5,
            "mismatch/gen_kl_error": sum(r - math.log(r) - 1 for r in (1.0, 0.5, 1.0, 1.0, 0.25)) / 5,
        },
        rel=1e-6,
    )
    assert measure([replace(whole, lag=lag * 0)], 2.5) == measure([whole], 2.5)
    refuse_mismatch(found, 1.85)
    older = measure([replace(whole, lag=lag + 1)], 2.5)
    refuse_mismatch(older, 1.001)  # nobody knows how far the engine is from its own policy
    assert "mismatch/token_mult_prob_error" not in older.metrics()


def test_the_gate() -> None:
    mismatch = measure([batch(RATIOS)], 2.5)  # 2.0
    refuse_mismatch(mismatch, 2.01)
    refuse_mismatch(mismatch, 0.0)
    with pytest.raises(UserError, match=r"error is 2, above loss.max_token_mult_prob_error=1.5; the weights were"):
        refuse_mismatch(mismatch, 1.5)
    broken = batch([math.nan, *RATIOS[1:]])
    with pytest.raises(UserError, match="error is nan"):
        refuse_mismatch(total([Mismatch(1, 1, 1.0), measure([broken], 2.5)]), 1.5)
    with pytest.raises(UserError, match="error is inf"):
        refuse_mismatch(Mismatch(1, 1, math.inf), 1.5)
