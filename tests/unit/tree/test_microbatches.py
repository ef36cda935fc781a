"""Cutting and scheduling decide which rank trains which token; a token lost or counted twice changes the objective.

Checked on random trees for random budgets and ranks. That the gradients agree as well is
tests/distributed/test_gradients.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from packing_oracles import ancestor_mask, tree_slices
from strategies import trees

from nemo_ibtpo.tree.microbatches import assemble, cut, pack_microbatches, schedule
from nemo_ibtpo.tree.packing import Credit, PackedBatch, layout, pack_tree
from nemo_ibtpo.tree.tree import Tree

forests = st.lists(trees(), min_size=1, max_size=6)
budgets = st.integers(min_value=1, max_value=60)


def named(tree: Tree, number: int) -> PackedBatch:
    """A packed tree whose every token has a name of its own, kept where a log-probability would be."""
    packed = pack_tree(tree)
    return replace(packed, old_logprobs=(1000.0 * number + np.arange(len(packed))).astype(np.float32))


def pieces_of(tree: Tree, budget: int) -> list[PackedBatch]:
    return [assemble([piece], {0: named(tree, 0)}) for piece in cut(0, layout(tree), budget)]


def planned(forest: list[Tree], budget: int, num_ranks: int, multiple_of: int = 1, attention_weight: float = 0.0):
    plan = schedule(
        map(layout, forest),
        max_tokens=budget,
        num_ranks=num_ranks,
        multiple_of=multiple_of,
        attention_weight=attention_weight,
    )
    packed = {number: named(tree, number) for number, tree in enumerate(forest)}
    return plan, [[assemble(pieces, packed) for pieces in own] for own in plan.ranks]


def longest_path(forest: list[Tree]) -> int:
    return max(int(layout(tree).depth.max()) + 1 for tree in forest)


def ancestors(batch: PackedBatch) -> dict[float, list[float]]:
    """Names of the tokens that each token attends to, in order."""
    mask, names = ancestor_mask(batch), batch.old_logprobs
    return {float(name): names[row].tolist() for name, row in zip(names, mask, strict=True)}


@given(trees(), budgets)
def test_pieces_hold_every_sampled_token_once_with_all_its_ancestors(tree: Tree, budget: int) -> None:
    assume(longest_path([tree]) <= budget)
    whole, pieces = named(tree, 0), pieces_of(tree, budget)
    in_loss = [name for piece in pieces for name in piece.old_logprobs[piece.in_loss].tolist()]
    assert sorted(in_loss) == whole.old_logprobs[whole.sampled].tolist()
    expected = ancestors(whole)
    for piece in pieces:
        assert len(piece) <= budget
        assert ancestors(piece) == {name: expected[name] for name in piece.old_logprobs.tolist()}


@given(trees(), budgets)
def test_pieces_keep_what_a_token_is(tree: Tree, budget: int) -> None:
    assume(longest_path([tree]) <= budget)
    whole = named(tree, 0)
    for piece in pieces_of(tree, budget):
        index = piece.old_logprobs.astype(int)
        for name in ("tokens", "depth", "sampled", "behaviour_logprobs"):
            np.testing.assert_array_equal(getattr(piece, name), getattr(whole, name)[index])
        before = piece.predecessor
        np.testing.assert_array_equal(np.where(before >= 0, index[before], -1), whole.predecessor[index])


@given(trees(), budgets)
def test_a_plan_knows_the_size_of_a_piece_before_it_is_packed(tree: Tree, budget: int) -> None:
    assume(longest_path([tree]) <= budget)
    for piece, packed in zip(cut(0, layout(tree), budget), pieces_of(tree, budget), strict=True):
        assert piece.tokens == len(packed)
        assert piece.pairs == ancestor_mask(packed).sum()


@given(
    forests,
    budgets,
    st.integers(min_value=1, max_value=4),
    st.integers(min_value=1, max_value=4),
    st.sampled_from([0.0, 0.1, 10.0]),
)
def test_schedule_deals_every_token_to_one_rank(
    forest: list[Tree], budget: int, num_ranks: int, multiple_of: int, attention_weight: float
) -> None:
    assume(longest_path(forest) <= budget)
    plan, ranks = planned(forest, budget, num_ranks, multiple_of, attention_weight)
    assert len(ranks) == num_ranks
    passes = {len(own) for own in ranks}
    assert len(passes) == 1
    assert passes.pop() % multiple_of == 0
    dealt: Counter[float] = Counter()
    for own in ranks:
        for batch in own:
            assert 1 <= len(batch) <= budget
            dealt.update(batch.old_logprobs[batch.in_loss].tolist())
    whole = [named(tree, number) for number, tree in enumerate(forest)]
    assert dealt == Counter(name for batch in whole for name in batch.old_logprobs[batch.sampled].tolist())
    assert 0 < plan.balance <= 1
    assert 0 < plan.fill <= 1


@given(forests, budgets, st.integers(min_value=1, max_value=4))
def test_trees_in_a_microbatch_do_not_see_each_other(forest: list[Tree], budget: int, num_ranks: int) -> None:
    assume(longest_path(forest) <= budget)
    whole = [named(tree, number) for number, tree in enumerate(forest)]
    expected = {name: seen for batch in whole for name, seen in ancestors(batch).items()}
    for own in planned(forest, budget, num_ranks)[1]:
        for batch in own:
            for part in tree_slices(batch):  # a name may come in two pieces of one tree
                mask = ancestor_mask(batch)[part]
                assert not mask[:, : part.start].any()
                names = batch.old_logprobs
                for name, row in zip(names[part], mask, strict=True):
                    assert names[row].tolist() == expected[float(name)]


@given(forests, budgets, st.integers(min_value=1, max_value=4))
def test_a_rank_packs_only_what_it_trains(forest: list[Tree], budget: int, num_ranks: int) -> None:
    """Every rank plans alike without a token; packed alone, its micro-batches are those of the whole plan."""
    assume(longest_path(forest) <= budget)
    credits = [Credit(*np.random.default_rng(i).random((3, len(t.nodes))), 1.0) for i, t in enumerate(forest)]
    everything = {i: pack_tree(tree, credit) for i, (tree, credit) in enumerate(zip(forest, credits, strict=True))}
    plan, _ = planned(forest, budget, num_ranks)
    for own in plan.ranks:
        needed = {piece.tree for pieces in own for piece in pieces}
        others_missing = [tree if i in needed else None for i, tree in enumerate(forest)]
        for batch, pieces in zip(pack_microbatches(own, others_missing, credits), own, strict=True):
            expected = assemble(pieces, everything)
            for name in (
                "tokens",
                "depth",
                "predecessor",
                "subtree_end",
                "in_loss",
                "weight",
                "positive",
                "negative",
            ):
                np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name), err_msg=name)


def test_the_last_token_of_a_tree_has_its_ancestors() -> None:
    """By hand: a chain of 4 tokens and one of 1 under a prompt of 1; a budget of 5 leaves the last token alone."""
    tree = Tree("p", [1])
    tree.insert(0, [((2, 3, 4, 5), (-0.1,) * 4)], "eos", round=0)
    tree.insert(0, [((6,), (-0.1,))], "eos", round=0)
    assert [(piece.start, piece.end, piece.tokens) for piece in cut(0, layout(tree), 5)] == [(0, 5, 5), (5, 6, 2)]
    assert pieces_of(tree, 5)[1].tokens.tolist() == [1, 6]


def test_equal_trees_are_balanced() -> None:
    tree = Tree("p", [1, 2, 3])
    tree.insert(0, [((4, 5), (-0.1, -0.1))], "eos", round=0)
    plan, _ = planned([tree] * 8, 10, 4)
    assert plan.balance == 1.0
    assert plan.fill == 1.0  # two trees of 5 tokens each in the one micro-batch of every rank
    assert [len(own) for own in plan.ranks] == [1, 1, 1, 1]


def test_attention_counts() -> None:
    """By hand: a chain of 10 tokens has 55 pairs, a tree of 10 tokens with 9 children of the root 1 + 9 * 2 = 19."""
    chain, wide = Tree("chain", [1]), Tree("wide", [1])
    chain.insert(0, [([2] * 9, [-0.1] * 9)], "eos", round=0)
    for token in range(9):
        wide.insert(0, [([token], [-0.1])], "eos", round=0)
    forest = [chain, chain, wide, wide]

    def kinds(attention_weight: float) -> list[list[int]]:
        plan, _ = planned(forest, 20, 2, attention_weight=attention_weight)
        return [sorted(piece.tree // 2 for pieces in own for piece in pieces) for own in plan.ranks]

    assert kinds(1.0) == [[0, 1], [0, 1]]  # a chain and a wide tree each
    plan, _ = planned([chain, wide], 10, 2, attention_weight=1.0)
    assert plan.balance == pytest.approx((10 + 55 + 10 + 19) / 2 / (10 + 55))
    plan, _ = planned([chain, wide], 10, 2, attention_weight=0.0)
    assert plan.balance == 1.0


def test_a_path_longer_than_the_budget_is_refused() -> None:
    tree = Tree("p", [1, 2, 3])
    tree.insert(0, [((4, 5), (-0.1, -0.1))], "eos", round=0)
    with pytest.raises(ValueError, match=r"trajectory of 5 tokens.*max_tokens_per_microbatch to at least 5"):
        schedule([layout(tree)], max_tokens=4, num_ranks=1, attention_weight=0.0)


def test_nothing_to_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="no tree to schedule"):
        schedule([], max_tokens=4, num_ranks=1, attention_weight=0.0)
