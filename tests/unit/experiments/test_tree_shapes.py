"""Shapes of trees, counted by hand. Why it matters: docs/results.md explains with them why an arm does not win."""

from __future__ import annotations

import pytest
from strategies import IB, add, hand_tree, step

from nemo_ibtpo.experiments.training_study.tree_shapes import mean_shape
from nemo_ibtpo.inspection.records import NodeRecord, TreeRecord
from nemo_ibtpo.tree.node import ROOT
from nemo_ibtpo.tree.tree import Tree


def record(tree: Tree) -> TreeRecord:
    values = tree.values(IB.value_estimator)
    blank = dict.fromkeys(("confidence", "ib_score", "advantage", "advantage_global", "advantage_local"))
    nodes = tuple(
        NodeRecord(
            parent=node.parent,
            round=0,
            draws=node.draws,
            tokens=len(node.tokens),
            text="",
            value=values[node.index],
            finish_reason=node.finish_reason,
            reward=node.reward,
            **blank,
        )
        for node in tree.nodes
    )
    return TreeRecord("p", "", "", nodes)


def test_shapes_by_hand() -> None:
    # Five trajectories, four distinct (d was sampled twice), four from the prompt, one from a, whose children differ.
    (a_tree, chains) = record(hand_tree()), Tree("p", (1,))
    counted = [5, 4, 4, 1, 1, 1.0, 1.0]
    assert list(mean_shape([a_tree]).values()) == pytest.approx(counted)
    add(chains, ROOT, [step([1], 0.5), step([2], 0.5)], 1.0)
    alone = mean_shape([record(chains)])
    assert list(alone.values()) == [1, 1, 1, 0, 0, None, None]
    add(chains, 1, [step([3], 0.5)], 1.0, round=1)  # another child of the same value
    both = mean_shape([a_tree, record(chains)])
    assert list(both.values()) == pytest.approx([3.5, 3, 2.5, 1, 1, 1.0, 0.5])
