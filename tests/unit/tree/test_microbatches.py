"""Cutting and scheduling decide which rank trains which token; a token lost or counted twice changes the objective.

Checked on random trees for random budgets and ranks. That the gradients agree as well is
tests/distributed/test_gradients.py.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import trees

from nemo_ibtpo.tree.microbatches import MicroBatch, cut, schedule
from nemo_ibtpo.tree.packing import ancestor_mask, pack_trees, tree_slices
from nemo_ibtpo.tree.tree import Tree

forests = st.lists(trees(), min_size=1, max_size=6)
budgets = st.integers(min_value=1, max_value=60)


def as_batch(tree: Tree, number: int) -> MicroBatch:
    """A tree whose every token has a name of its own."""
    packed = pack_trees([tree])
    return MicroBatch(packed, {"name": (1000.0 * number + np.arange(len(packed))).astype(np.float32)})


def longest_path(forest: list[Tree]) -> int:
    return max(int(pack_trees([tree]).depth.max()) + 1 for tree in forest)


def ancestors(batch: MicroBatch) -> dict[float, list[float]]:
    """Names of the tokens that each token attends to, in order."""
    mask, names = ancestor_mask(batch.packed), batch.fields["name"]
    return {float(name): names[row].tolist() for name, row in zip(names, mask, strict=True)}


@given(trees(), budgets)
def test_pieces_hold_every_sampled_token_once_with_all_its_ancestors(tree: Tree, budget: int) -> None:
    assume(longest_path([tree]) <= budget)
    whole = as_batch(tree, 0)
    pieces = cut(whole, budget)
    in_loss = [name for piece in pieces for name in piece.fields["name"][piece.packed.loss_mask].tolist()]
    assert sorted(in_loss) == whole.fields["name"][whole.packed.loss_mask].tolist()
    expected = ancestors(whole)
    for piece in pieces:
        assert len(piece) <= budget
        assert ancestors(piece) == {name: expected[name] for name in piece.fields["name"].tolist()}


@given(trees(), budgets)
def test_pieces_keep_what_a_token_is(tree: Tree, budget: int) -> None:
    assume(longest_path([tree]) <= budget)
    whole = as_batch(tree, 0)
    for piece in cut(whole, budget):
        index = piece.fields["name"].astype(int)
        for name in ("tokens", "depth", "n_paths", "node", "behaviour_logprobs"):
            np.testing.assert_array_equal(getattr(piece.packed, name), getattr(whole.packed, name)[index])
        before = piece.packed.predecessor
        np.testing.assert_array_equal(
            np.where(before >= 0, index[before], -1), whole.packed.predecessor[index], "predecessor"
        )


@given(forests, budgets, st.integers(min_value=1, max_value=4), st.integers(min_value=1, max_value=4))
def test_schedule_deals_every_token_to_one_rank(
    forest: list[Tree], budget: int, num_ranks: int, multiple_of: int
) -> None:
    assume(longest_path(forest) <= budget)
    batches = [as_batch(tree, number) for number, tree in enumerate(forest)]
    plan = schedule(batches, max_tokens=budget, num_ranks=num_ranks, multiple_of=multiple_of)
    assert len(plan.ranks) == num_ranks
    passes = {len(own) for own in plan.ranks}
    assert len(passes) == 1
    assert passes.pop() % multiple_of == 0
    dealt: Counter[float] = Counter()
    for own in plan.ranks:
        for batch in own:
            assert 1 <= len(batch) <= budget
            dealt.update(batch.fields["name"][batch.packed.loss_mask].tolist())
    expected = Counter(name for b in batches for name in b.fields["name"][b.packed.loss_mask].tolist())
    assert dealt == expected
    assert 0 < plan.balance <= 1
    assert 0 < plan.fill <= 1


@given(forests, budgets, st.integers(min_value=1, max_value=4))
def test_trees_in_a_microbatch_do_not_see_each_other(forest: list[Tree], budget: int, num_ranks: int) -> None:
    assume(longest_path(forest) <= budget)
    batches = [as_batch(tree, number) for number, tree in enumerate(forest)]
    expected = {name: seen for batch in batches for name, seen in ancestors(batch).items()}
    for own in schedule(batches, max_tokens=budget, num_ranks=num_ranks).ranks:
        for batch in own:
            for part in tree_slices(batch.packed):  # a name may come in two pieces of one tree
                mask = ancestor_mask(batch.packed)[part]
                assert not mask[:, : part.start].any()
                names = batch.fields["name"]
                for name, row in zip(names[part], mask, strict=True):
                    assert names[row].tolist() == expected[float(name)]


def test_equal_trees_are_balanced() -> None:
    tree = Tree("p", [1, 2, 3])
    tree.insert(0, [((4, 5), (-0.1, -0.1))], "eos", round=0)
    plan = schedule([as_batch(tree, n) for n in range(8)], max_tokens=10, num_ranks=4)
    assert plan.balance == 1.0
    assert plan.fill == 1.0  # two trees of 5 tokens each in the one micro-batch of every rank
    assert [len(own) for own in plan.ranks] == [1, 1, 1, 1]


def test_a_path_longer_than_the_budget_is_refused() -> None:
    tree = Tree("p", [1, 2, 3])
    tree.insert(0, [((4, 5), (-0.1, -0.1))], "eos", round=0)
    with pytest.raises(ValueError, match=r"trajectory of 5 tokens.*max_tokens_per_microbatch to at least 5"):
        schedule([as_batch(tree, 0)], max_tokens=4, num_ranks=1)


def test_nothing_to_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="no tree to schedule"):
        schedule([], max_tokens=4, num_ranks=1)
