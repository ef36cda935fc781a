"""Rows move when sequences end; a row that moves in part would mix two rollouts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nemo_ibtpo.rollout.embedded.running_batch import RunningBatch
from nemo_ibtpo.tree.rollouts import RolloutRequest


def token_of(request_id: int, index: int) -> int:
    return (7 * request_id + 3 * index) % 50


@given(st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 5), max_size=4)), max_size=15))
def test_every_sequence_stays_whole(script: list[tuple[int, set[int]]]) -> None:
    """Requests join and leave in any order; each keeps its own tokens, log-probabilities, seed and limit."""
    batch, next_id = RunningBatch(rows=6, max_length=40), 0
    elsewhere: dict[int, int] = {}  # what an owner of row-wise state would hold: row -> request id
    for joining, leaving in script:
        for _ in range(min(joining, batch.rows - len(batch))):
            prefix = tuple(token_of(next_id, i) for i in range(1 + next_id % 3))
            elsewhere[batch.add(RolloutRequest(next_id, prefix, 20, seed=2**64 - 1 - next_id))] = next_id
            next_id += 1
        ids = np.array([request.request_id for request in batch.requests], dtype=np.int64)
        kept = [bytes([id_]) for id_ in ids.tolist()]
        batch.append(token_of(ids, batch.length[: len(batch)]), -ids.astype(np.float32), kept)
        sources, targets = batch.remove([row for row in leaving if row < len(batch)])
        for source, target in zip(sources, targets, strict=True):
            elsewhere[target] = elsewhere[source]
        for row, request in enumerate(batch.requests):
            assert elsewhere[row] == request.request_id
            assert batch.sequence(row) == tuple(token_of(request.request_id, i) for i in range(batch.length[row]))
            rollout = batch.rollout(row, "length")
            assert len(rollout.tokens) == len(rollout.logprobs) == batch.sampled[row] > 0
            assert request.prefix + rollout.tokens == batch.sequence(row)
            assert set(rollout.logprobs) == {-float(request.request_id)}
            assert rollout.kept == (bytes([request.request_id]),) * len(rollout.tokens)
            assert int(batch.seed[row]) == request.seed
            assert batch.limit[row] == len(request.prefix) + request.max_new_tokens
            assert batch.last_tokens[row] == batch.sequence(row)[-1]
