"""What a token was drawn from stays with it, from the sampler's rollout to the piece of a tree that a pass computes.

A set at another token's place would renormalise the policy over tokens that were never a choice there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from growth_toys import SAMPLER, RandomWriter, grow_toys

from nemo_ibtpo.tree.microbatches import assemble, cut
from nemo_ibtpo.tree.packing import layout, pack_tree
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest
from nemo_ibtpo.tree.tree import Tree


def set_of(token: int) -> bytes:
    return np.arange(token % 3 + 1, dtype=np.int32).tobytes() + np.int32(token).tobytes()


class TruncatedWriter(RandomWriter):
    """Says of each token that it was drawn from a set which tells the token."""

    def write(self, request: RolloutRequest) -> Rollout:
        rollout = super().write(request)
        return replace(rollout, kept=tuple(map(set_of, rollout.tokens)))


@pytest.mark.parametrize("name", ["ib", "entropy"])  # the latter splits steps where it forks
def test_sets_stay_with_their_tokens(name: str) -> None:
    sampler = replace(SAMPLER, name=name, branch_points=4, rounds=3)
    for tree in grow_toys("abc", sampler=sampler, source=TruncatedWriter(0)):
        for node in tree.nodes[1:]:
            assert node.kept == tuple(map(set_of, node.tokens))
        assert Tree.from_dict(tree.to_dict()).nodes == tree.nodes
        packed, laid = pack_tree(tree), layout(tree)
        pieces = cut(0, laid, int(laid.depth.max()) + 4)
        assert len(pieces) > 1
        for piece in pieces:
            batch = assemble([piece, piece], {0: packed})
            for token, sampled, kept in zip(batch.tokens.tolist(), batch.sampled, batch.kept, strict=True):
                assert kept == (set_of(token) if sampled else b"")


def test_without_truncation_there_are_no_sets() -> None:
    [tree] = grow_toys("a")
    assert pack_tree(tree).kept is None
