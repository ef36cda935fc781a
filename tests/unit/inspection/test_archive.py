"""Trees on disk come back as they were, take no more room than they may, and damage is named.

Why this matters: a study is read off these files, and a run of weeks must not fill a disk.
Not exercised: a full disk.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from advantages_of import ibtpo
from strategies import IB, hand_tree

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import TreesConfig
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.inspection.archive import StepTrees, TreeArchive
from nemo_ibtpo.inspection.keeping import TreeKeeper
from nemo_ibtpo.inspection.records import TreeRecord, record_tree
from nemo_ibtpo.methods import per_node
from nemo_ibtpo.tree.ib_score import ib_scores
from nemo_ibtpo.tree.tree import Tree

ROOM = 2**30
PROBLEM = Problem("0f", "What?", "42", "math", {}, (1,))


def spell(tokens: list[int]) -> str:
    return "".join(f" {token}" for token in tokens).lstrip()  # as some decoders: no space before a first token


def record(tree: Tree | None = None) -> TreeRecord:
    tree = hand_tree() if tree is None else tree
    return record_tree(tree, PROBLEM, per_node(tree, ibtpo(tree, 0.5, IB)), IB, spell)


def test_a_record_has_the_scores_of_the_tree(tmp_path: Path) -> None:
    tree = hand_tree()
    advantages, scores = ibtpo(tree, 0.5, IB), ib_scores(tree, IB)
    archive = TreeArchive(tmp_path)
    archive.write(StepTrees(3, {"beta": 5.0}, (record(),)), ROOM)
    content = archive.read(3)
    assert (content.step, content.settings) == (3, {"beta": 5.0})
    (read,) = content.trees
    assert read == record()
    for node, own in zip(tree.nodes, read.nodes, strict=True):
        i = node.index
        assert (own.parent, own.draws, own.round) == (node.parent, node.draws, node.round)
        assert (own.finish_reason, own.reward, own.tokens) == (node.finish_reason, node.reward, len(node.tokens))
        assert own.value == pytest.approx(tree.values("leaf_mean")[i], rel=1e-5)
        assert own.advantage == pytest.approx(advantages.total[i], rel=1e-5)
        assert own.advantage == pytest.approx(own.advantage_global + 0.5 * own.advantage_local, abs=1e-4)
        assert own.ib_score is None if np.isnan(scores[i]) else own.ib_score == pytest.approx(scores[i], rel=1e-5)
        assert own.text.split() == [str(token) for token in node.tokens]
        assert own.text.startswith(" ") == (i != 0)
    assert read.mean_reward == pytest.approx(tree.rewards().mean())
    assert (read.unique_tokens, read.duplicated_tokens) == (tree.unique_tokens, tree.duplicated_tokens)
    assert read.trajectories == tree.num_trajectories
    assert read.is_mixed


def test_a_tree_that_is_not_trained_on_has_no_advantage() -> None:
    nothing = per_node(hand_tree(), None)
    kept = record_tree(hand_tree(), PROBLEM, nothing, IB, spell)
    assert {node.advantage for node in kept.nodes} == {None}
    assert TreeRecord.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept


def test_the_keeper_takes_the_smallest_problem_ids(tmp_path: Path) -> None:
    config = TreesConfig(period=1, trees_per_step=2, max_gib=1.0)
    problems = {name: replace(PROBLEM, problem_id=name) for name in ("c", "a", "b")}
    keeper = TreeKeeper(TreeArchive(tmp_path), config, IB, {}, problems, spell)
    trees = []
    for name in problems:
        trees.append(hand_tree())
        trees[-1].prompt_id = name
    keeper.keep(4, trees, [per_node(tree, ibtpo(tree, 0.5, IB)) for tree in trees])
    assert [tree.prompt_id for tree in TreeArchive(tmp_path).read(4).trees] == ["a", "b"]


def test_room_is_bounded_and_what_is_left_covers_the_run(tmp_path: Path) -> None:
    archive = TreeArchive(tmp_path)
    archive.write(StepTrees(1, {}, (record(),)), ROOM)
    size = archive.path(1).stat().st_size
    for step in range(2, 101):
        archive.write(StepTrees(step, {}, (record(),)), 10 * size + 9)
        assert sum(path.stat().st_size for path in archive.directory.iterdir()) <= 10 * size + 9
    steps = archive.steps()
    assert steps[0] == 1 and steps[-1] == 100
    assert max(np.diff(steps)) <= 4 * 100 / len(steps)
    archive.write(StepTrees(101, {}, (record(),)), 1)
    assert archive.steps() == [101]  # the newest always stays


def test_later_steps_are_dropped_before_a_resumed_run_writes_them(tmp_path: Path) -> None:
    archive = TreeArchive(tmp_path)
    for step in (1, 2, 10):
        archive.write(StepTrees(step, {}, (record(),)), ROOM)
    archive.drop_after(2)
    assert archive.steps() == [1, 2]


def damaged(path: Path, kind: str) -> None:
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-9])
        return
    if kind == "other version":
        lines[0] = lines[0].replace("trees/1", "trees/9")
    else:
        tree = json.loads(lines[1])
        change = {"a parent": ("parent", 4), "a column": ("draws", None), "a text": ("text", 7)}[kind]
        tree["nodes"][change[0]] = [change[1]] * 6 if change[1] is not None else [1]
        lines[1] = json.dumps(tree)
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))


@pytest.mark.parametrize("kind", ["cut off", "other version", "a parent", "a column", "a text"])
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    archive = TreeArchive(tmp_path)
    archive.write(StepTrees(1, {}, (record(),)), ROOM)
    damaged(archive.path(1), kind)
    with pytest.raises(UserError, match=r"step_1.jsonl.gz holds no trees of this program"):
        archive.read(1)
    with pytest.raises(UserError, match="steps with trees: 1"):
        archive.read(2)


def test_an_inconsistent_node_is_refused() -> None:
    broken = record()
    nodes = (broken.nodes[0], replace(broken.nodes[1], finish_reason="eos"), *broken.nodes[2:])
    with pytest.raises(ValueError, match="node 1 cannot be"):
        TreeRecord.from_dict(replace(broken, nodes=nodes).to_dict())
