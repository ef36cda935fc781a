"""What an update is divided by decides how large it is when groups are left out for equal rewards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from advantages_of import METHODS
from strategies import IB, add, hand_tree, step

from nemo_ibtpo.training.updates import pack
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree

# Where an update is packed: one data-parallel rank.
ONE_RANK = SimpleNamespace(data_parallel_size=1, data_parallel_rank=0, microbatch_multiple=1, attention_weight=0.0)


@pytest.mark.parametrize(
    ("denominator", "expected"), [("kept", 12.0), ("all", 12.0 + 2 * 3), ("constant", (5 + 2) * 16)]
)
def test_groups_left_out_count_in_the_denominator_if_asked(denominator: str, expected: float) -> None:
    equal = Tree("equal", (1,))
    for token in (2, 3):
        add(equal, ROOT, [step([token, 4, 5], 0.5)], 1.0)
    trees = [hand_tree(), equal]
    loss = SimpleNamespace(
        name="clipped", normalization="token_mean", token_weight="trajectories", denominator=denominator
    )
    config = SimpleNamespace(
        sampler=SimpleNamespace(carry_over=0.0),
        loss=loss,
        actor=SimpleNamespace(max_tokens_per_microbatch=100),
        rollout=SimpleNamespace(max_new_tokens=16),
    )
    update = pack(trees, METHODS["grpo"].of_update(trees, IB), ONE_RANK, config, 1)
    assert update is not None
    assert update.denominator == expected
    assert [len(batch) for batch in update.batches] == [9]  # the group left out is not packed
    assert pack([equal], METHODS["grpo"].of_update([equal], IB), ONE_RANK, config, 1) is None
