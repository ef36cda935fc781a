"""A tree of reasoning steps: the first of the two things that travel through the system.

The root holds the prompt; every other node is one step, a run of sampled response tokens. A root-to-leaf path
is a trajectory. The tree is a trie over steps: sampling the same step twice at the same parent makes one node
with two draws.

Invariants (asserted by ``tests/unit/tree/test_tree.py``):

- ``nodes[0]`` is the root and ``nodes[i].index == i``; a parent's index is smaller than its children's.
- No step is empty, and ``len(logprobs) == len(tokens)`` except at the root, which has no log-probabilities.
- A node has children or a finish reason, never both: a leaf ends its trajectory.
- ``draws`` counts the times a step was *sampled freely* at its parent; a trajectory that was forced through a
  step by its prefix adds none. The last step of a trajectory is always drawn freely, so the number of
  trajectories equals the sum of ``draws`` over the leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nemo_ibtpo.tree.arrays import nodes_from_arrays, nodes_to_arrays
from nemo_ibtpo.tree.node import ROOT, FinishReason, Node

ValueEstimator = Literal["leaf_mean", "children_mean"]
Step = tuple[Sequence[int], Sequence[float]]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_VERSION = 1


class Tree:
    """The trajectories sampled for one prompt.

    Args:
        prompt_id: the problem's identifier.
        prompt_tokens: token ids of the prompt, at least one: the first sampled token needs a predecessor.
        merge: equal steps at a place become one node; otherwise each is a node of its own with one draw.

    Raises:
        ValueError: the prompt is empty.
    """

    def __init__(self, prompt_id: str, prompt_tokens: Sequence[int], *, merge: bool = True) -> None:
        if len(prompt_tokens) == 0:
            raise ValueError(f"tree {prompt_id!r}: the prompt is empty; it needs at least one token")
        self.prompt_id = prompt_id
        self._merge = merge
        self.nodes: list[Node] = [Node(index=ROOT, parent=-1, tokens=tuple(prompt_tokens))]

    def insert(
        self,
        branch_node: int,
        steps: Sequence[Step],
        finish_reason: FinishReason,
        round: int,
        versions: Sequence[int] = (),
        kept: Sequence[bytes] = (),
    ) -> int:
        """Add a trajectory that was sampled from ``branch_node`` on.

        Steps that equal existing ones, token for token and in whether the trajectory ends there, are merged
        into them (declared); the log-probabilities and the finish reason of the first sample are kept. Every
        step given here was sampled freely, so each of its nodes counts one draw more.

        Args:
            branch_node: the node whose path was the prefix; ``ROOT`` for an independent trajectory.
            steps: (token ids, log-probabilities) of each sampled step, in order.
            finish_reason: why the trajectory ended with the last of them.
            round: the round of growth it belongs to.
            versions: of the policy that sampled each token of all steps; empty where versions are not counted.
            kept: what each token of all steps was drawn from; empty where that is the whole vocabulary.

        Returns:
            Index of the leaf.

        Raises:
            ValueError: the node does not exist or is a leaf, or a step is empty or lacks log-probabilities.
        """
        where = f"tree {self.prompt_id!r}"
        if not 0 <= branch_node < len(self.nodes):
            raise ValueError(f"{where}: no node {branch_node} to branch at; there are {len(self.nodes)}")
        if self.nodes[branch_node].is_leaf:
            raise ValueError(f"{where}: node {branch_node} is a leaf; only a step that goes on can be branched")
        if not steps:
            raise ValueError(f"{where}: a trajectory from node {branch_node} has no step; it needs at least one")
        for tokens, logprobs in steps:
            if len(tokens) == 0:
                raise ValueError(f"{where}: an empty step below node {branch_node}; a step has at least one token")
            if len(tokens) != len(logprobs):
                raise ValueError(
                    f"{where}: a step below node {branch_node} has {len(tokens)} tokens but {len(logprobs)} "
                    "log-probabilities; it needs one for each token"
                )
        length = sum(len(tokens) for tokens, _ in steps)
        for name, values in (("versions", versions), ("kept sets", kept)):
            if len(values) not in (0, length):
                raise ValueError(f"{where}: {len(values)} {name} for {length} tokens below node {branch_node}")
        current, done = branch_node, 0
        for position, (tokens, logprobs) in enumerate(steps):
            reason = finish_reason if position == len(steps) - 1 else None
            part = slice(done, done + len(tokens))
            done += len(tokens)
            current = self._child(
                current, tuple(tokens), tuple(logprobs), tuple(versions[part]), tuple(kept[part]), reason, round
            )
            self.nodes[current].draws += 1
        return current

    def _child(
        self,
        parent: int,
        tokens: tuple[int, ...],
        logprobs: tuple[float, ...],
        versions: tuple[int, ...],
        kept: tuple[bytes, ...],
        finish_reason: FinishReason | None,
        round: int,
    ) -> int:
        """Index of the child of ``parent`` that holds this step; made if there is none."""
        for index in self.nodes[parent].children if self._merge else ():
            child = self.nodes[index]
            if child.tokens == tokens and child.is_leaf == (finish_reason is not None):
                return index
        node = Node(
            len(self.nodes),
            parent,
            tokens,
            logprobs,
            round=round,
            finish_reason=finish_reason,
            versions=versions,
            kept=kept,
        )
        self.nodes.append(node)
        self.nodes[parent].children.append(node.index)
        return node.index

    def split(self, ends: Sequence[tuple[int, int]]) -> list[int]:
        """Cut steps where they are to be continued from inside, so that a node ends at each given place.

        A cut step becomes a chain of nodes with its draws, its log-probabilities and its round; the last of them
        keeps its children, its finish reason and its reward. No trajectory and no token changes. Where the first
        part of a step now equals a sibling they are merged, and so on below them, as :meth:`insert` would have
        done (declared); equal leaves keep the older one's finish reason and reward.

        Args:
            ends: (node, number of its tokens that come before the place); all of its tokens cut nothing.

        Returns:
            For each place the node that ends there. All other indices may have changed.

        Raises:
            ValueError: a place is not inside or at the end of a node, or would cut the prompt.
        """
        cuts: dict[int, set[int]] = {}
        for index, offset in ends:
            if not 0 <= index < len(self.nodes):
                raise ValueError(f"tree {self.prompt_id!r}: no node {index} to split; there are {len(self.nodes)}")
            length = len(self.nodes[index].tokens)
            if not (1 <= offset <= length and (index != ROOT or offset == length)):
                raise ValueError(
                    f"tree {self.prompt_id!r}: node {index} cannot be split after {offset} of {length} tokens"
                    + (", it is the prompt" if index == ROOT else "")
                )
            if offset < length:
                cuts.setdefault(index, set()).add(offset)
        if not cuts:
            return [index for index, _ in ends]
        old, self.nodes = self.nodes, [Node(index=ROOT, parent=-1, tokens=self.nodes[ROOT].tokens)]
        node_at = {(ROOT, len(old[ROOT].tokens)): ROOT}
        for node in old[1:]:  # parents come first
            length = len(node.tokens)
            current = node_at[node.parent, len(old[node.parent].tokens)]
            for start, end in pairwise([0, *sorted(cuts.get(node.index, ())), length]):
                part = slice(start, end)
                reason = node.finish_reason if end == length else None
                current = self._child(
                    current,
                    node.tokens[part],
                    node.logprobs[part],
                    node.versions[part],
                    node.kept[part],
                    reason,
                    node.round,
                )
                self.nodes[current].draws += node.draws
                node_at[node.index, end] = current
            if self.nodes[current].reward is None:
                self.nodes[current].reward = node.reward
        return [node_at[end] for end in ends]

    def set_reward(self, leaf: int, reward: float) -> None:
        """Set the outcome reward, in [0, 1], of a leaf.

        Raises:
            ValueError: the node is not a leaf, already has another reward, or the reward is out of range.
        """
        node = self.nodes[leaf]
        if not node.is_leaf:
            raise ValueError(f"tree {self.prompt_id!r}: node {leaf} is not a leaf; only leaves have rewards")
        if not 0.0 <= reward <= 1.0:
            raise ValueError(f"tree {self.prompt_id!r}: reward {reward} of leaf {leaf} is outside [0, 1]")
        if node.reward is not None and node.reward != reward:
            raise ValueError(
                f"tree {self.prompt_id!r}: leaf {leaf} has reward {node.reward}; it cannot become {reward}"
            )
        node.reward = float(reward)

    def path(self, node: int) -> list[int]:
        """Node indices from the root down to ``node``, both included."""
        path = [node]
        while path[-1] != ROOT:
            path.append(self.nodes[path[-1]].parent)
        return path[::-1]

    def response_tokens(self, node: int) -> tuple[int, ...]:
        """Sampled token ids from below the root down to the end of ``node``."""
        return tuple(token for index in self.path(node)[1:] for token in self.nodes[index].tokens)

    def depth_tokens(self, node: int) -> int:
        """Sampled tokens down to and including ``node``; 0 at the root."""
        return sum(len(self.nodes[index].tokens) for index in self.path(node)[1:])

    def leaves(self) -> Iterator[Node]:
        """The last steps of the trajectories, oldest first; each counts ``draws`` trajectories."""
        return (node for node in self.nodes if node.is_leaf)

    def sum_over_leaves(self, per_node: FloatArray) -> FloatArray:
        """Sum, for each node, of ``draws * per_node`` over the leaves at or below it; [N] to [N].

        Every quantity of a node that is a sum over the trajectories through it is of this form, because a
        trajectory is known by its leaf. Entries of ``per_node`` that do not belong to a leaf are not read.
        """
        total = [0.0] * len(self.nodes)  # a list: single entries of an array are slow to reach
        for leaf in self.leaves():
            total[leaf.index] = leaf.draws * float(per_node[leaf.index])
        for node in reversed(self.nodes[1:]):  # children have larger indices: they are complete before parents
            total[node.parent] += total[node.index]
        return np.array(total)

    def n_paths(self) -> IntArray:
        """Trajectories through each node, a leaf counted once per draw that ended in it; [N]."""
        return self.sum_over_leaves(np.ones(len(self.nodes))).astype(np.int64)

    @property
    def num_trajectories(self) -> int:
        """G, the trajectories sampled so far."""
        return sum(leaf.draws for leaf in self.leaves())

    def rewards(self) -> FloatArray:
        """Reward of every trajectory, leaf after leaf, one entry per draw; [G].

        Raises:
            ValueError: a reward is not known yet.
        """
        return np.array([self._reward(leaf) for leaf in self.leaves() for _ in range(leaf.draws)])

    @property
    def is_mixed(self) -> bool:
        """Whether the rewards of the trajectories differ, so that there is something to compare."""
        rewards_G = self.rewards()
        return bool(rewards_G.min() < rewards_G.max())

    def values(self, estimator: ValueEstimator) -> FloatArray:
        """p_hat(a*|s), the reward density below each node; [N], in [0, 1].

        Args:
            estimator: ``leaf_mean`` (paper) is the mean reward of the trajectories through the node, a leaf
                counted once per draw; ``children_mean`` (declared) is the mean of the children's values, a
                child counted once per draw, so that sampling more below one child does not move the value.

        Raises:
            ValueError: there is no trajectory yet, or a reward is not known yet.
        """
        if len(self.nodes) == 1:
            raise ValueError(f"tree {self.prompt_id!r}: no trajectory yet, so no node has a value")
        rewards = np.array([self._reward(node) if node.is_leaf else 0.0 for node in self.nodes])
        if estimator == "leaf_mean":
            return self.sum_over_leaves(rewards) / self.n_paths()
        values = rewards
        for node in reversed(self.nodes):
            if node.children:
                draws = [self.nodes[child].draws for child in node.children]
                values[node.index] = np.average(values[node.children], weights=draws)
        return values

    def _reward(self, leaf: Node) -> float:
        if leaf.reward is None:
            raise ValueError(f"tree {self.prompt_id!r}: the reward of leaf {leaf.index} is not known yet")
        return leaf.reward

    @property
    def unique_tokens(self) -> int:
        """Sampled tokens, each shared one counted once: what a pass over the packed tree trains on."""
        return sum(len(node.tokens) for node in self.nodes[1:])

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the engine drew: a step that was drawn twice cost twice."""
        return sum(node.draws * len(node.tokens) for node in self.nodes[1:])

    @property
    def duplicated_tokens(self) -> int:
        """Sampled tokens summed over the trajectories: what separate sequences would hold."""
        return sum(leaf.draws * self.depth_tokens(leaf.index) for leaf in self.leaves())

    def __getstate__(self) -> dict[str, Any]:
        """What ranks exchange: arrays, many times smaller than lists of numbers and faster to read."""
        return {"prompt_id": self.prompt_id, "merge": self._merge, "arrays": nodes_to_arrays(self.nodes)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.prompt_id, self._merge = state["prompt_id"], state["merge"]
        self.nodes = nodes_from_arrays(state["arrays"])

    def to_dict(self) -> dict[str, Any]:
        """The tree as plain lists and numbers, for JSON."""
        return {"version": _VERSION, "prompt_id": self.prompt_id, "nodes": [_described(n) for n in self.nodes]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Tree:
        """The tree that :meth:`to_dict` described, also after a round trip through JSON.

        Raises:
            ValueError: the data has another version or breaks an invariant of the module.
        """
        if data.get("version") != _VERSION:
            raise ValueError(f"a tree of version {data.get('version')!r}; this release reads version {_VERSION}")
        try:
            nodes = [
                Node(
                    **{
                        **node,
                        **{name: tuple(node.get(name, ())) for name in ("tokens", "logprobs", "versions")},
                        "kept": tuple(map(bytes.fromhex, node.get("kept", ()))),
                    }
                )
                for node in data["nodes"]
            ]
            tree = cls(data["prompt_id"], nodes[ROOT].tokens)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"not the description of a tree: {error!r}") from error
        tree.nodes = nodes
        tree._check()
        return tree

    def _check(self) -> None:
        """Raise ValueError unless the invariants of the module hold."""
        for index, node in enumerate(self.nodes):
            is_root = index == ROOT
            linked = node.parent == -1 if is_root else 0 <= node.parent < index
            if not (
                node.index == index
                and linked
                and (is_root or index in self.nodes[node.parent].children)
                and all(index < c < len(self.nodes) and self.nodes[c].parent == index for c in node.children)
                and len(node.tokens) > 0
                and len(node.logprobs) == (0 if is_root else len(node.tokens))
                and len(node.versions) in (0, len(node.logprobs))
                and (is_root or node.draws > 0)
                and (is_root or node.is_leaf != bool(node.children))
                and (node.reward is None or (node.is_leaf and 0.0 <= node.reward <= 1.0))
            ):
                raise ValueError(f"tree {self.prompt_id!r}: node {index} breaks an invariant of trees: {node}")


_FIELDS = tuple(entry.name for entry in fields(Node) if entry.init)


def _described(node: Node) -> dict[str, Any]:
    described = {name: getattr(node, name) for name in _FIELDS}
    if not node.versions:
        del described["versions"]
    del described["kept"]
    if node.kept:
        described["kept"] = [own.hex() for own in node.kept]
    return described | {"children": list(node.children)}
