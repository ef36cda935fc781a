"""How a sequence is dealt over context-parallel ranks.

Why it matters: a token that no rank holds is not trained, one that two ranks hold is trained twice, and a rank with
more to attend to keeps the others waiting in every layer. That gradients do not change is
tests/distributed/test_gradients.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packing_oracles import pack_trees
from strategies import trees

from nemo_ibtpo.tree.context_parallel import deal, keys_of_ranks, padded_length
from nemo_ibtpo.tree.packing import IntArray
from nemo_ibtpo.tree.tree import Tree


@given(st.lists(trees(), min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 40))
def test_every_token_is_on_one_rank(forest: list[Tree], multiple: int, num_ranks: int, stretch: int) -> None:
    depth = np.repeat(pack_trees(forest).depth, stretch)  # long enough for blocks longer than the multiple
    dealt = deal(depth, multiple, num_ranks)
    assert sorted(dealt.ravel().tolist()) == list(range(padded_length(len(depth), multiple, num_ranks)))
    assert len(dealt) == num_ranks and dealt.shape[1] % multiple == 0
    assert (np.diff(dealt, axis=1) > 0).all()
    blocks = dealt.reshape(num_ranks, -1, multiple)  # what a kernel works on at once is neighbours
    assert (blocks - blocks[:, :, :1] == np.arange(multiple)).all() and (blocks[:, :, 0] % multiple == 0).all()
    assert 0 <= dealt.size - len(depth) < max(num_ranks * multiple, len(depth) / 32 + num_ranks * multiple)


@given(st.lists(trees(), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 4))
def test_ranks_get_the_keys_that_their_queries_attend_to(forest: list[Tree], multiple: int, num_ranks: int) -> None:
    packed = pack_trees(forest)
    dealt = deal(packed.depth, multiple, num_ranks)
    ends = np.concatenate((packed.subtree_end, np.arange(len(packed), dealt.size) + 1))
    expected = [[j for j in range(dealt.size) if any(j <= i < ends[j] for i in own.tolist())] for own in dealt]
    assert [keys.tolist() for keys in keys_of_ranks(dealt, ends)] == expected


def chain(length: int) -> IntArray:
    return np.arange(length)


def bush(prompt: int, branches: int, length: int) -> IntArray:
    return np.concatenate((chain(prompt), *[prompt + chain(length)] * branches))


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
@pytest.mark.parametrize(
    ("depth", "multiple"),
    [(chain(131_072), 128), (bush(1_000, 12, 8_000), 128), (bush(200, 8, 1_000), 1), (chain(7_950), 1)],
    ids=["a path of 128k tokens", "12 branches of 8k", "8 branches of 1k", "a path of 8k"],
)
def test_ranks_have_equally_much_to_attend_to(depth: IntArray, multiple: int, num_ranks: int) -> None:
    assert balance(depth, deal(depth, multiple, num_ranks)) > 0.98


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_borders_by_tokens_alone_are_seen_as_unbalanced(num_ranks: int) -> None:
    """One run of tokens for each rank: as many tokens, but the last rank's attend to the most."""
    depth = chain(131_072)
    assert balance(depth, np.arange(len(depth)).reshape(num_ranks, -1)) < 0.7


def balance(depth: IntArray, dealt: IntArray) -> float:
    """Mean over largest number of pairs of a rank."""
    pairs = np.pad(depth + 1, (0, dealt.size - len(depth)), constant_values=1)[dealt].sum(axis=1)
    return float(pairs.mean() / pairs.max())
