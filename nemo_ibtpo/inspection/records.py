"""A sampled tree with all that was derived from it, as text and numbers: what a viewer shows and a study reads.

No token ids: a step is its text and the number of its tokens. What the scores are made of is there, so that they
can be computed again for other constants. With the children c of a step v::

    gain(c)            = value(c) / value(v) - (1 + 1/beta)             the ratio is 1 where value(v) is 0
    ib_score(v)        = (1 + beta) * mean over the draws of v's children of gain(c) * confidence(c)
    advantage_local(c) = gain(c) * confidence(c)                        advantage: ibtpo
    advantage(c)       = advantage_global(c) + ib_coef * advantage_local(c)

Numbers are kept to six significant digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import numpy as np

from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.methods import StepAdvantages
from nemo_ibtpo.tree.ib_score import eta2, ib_scores
from nemo_ibtpo.tree.node import ROOT, FinishReason
from nemo_ibtpo.tree.tree import Tree

Decode = Callable[[list[int]], str]
_TAIL = 4  # tokens before a step that its text may depend on: a space after them, the rest of a character


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One step; the first node of a tree is the prompt. Nodes are in the order in which they were made.

    Attributes:
        parent: index of the parent, smaller than the node's own; -1 for the prompt.
        round: the round of growth that made the node, 0 for the first trajectories.
        draws: how often the step was sampled freely at its parent.
        tokens: number of its tokens.
        text: what they say, special tokens included.
        confidence: pi(step) as the IB-Score takes it, in [0, 1]; None for the prompt.
        value: reward density below the node, in [0, 1].
        ib_score: None for a leaf.
        advantage, advantage_global, advantage_local: None where the tree was left out of training, and the parts
            also where the advantage has none.
        finish_reason: why a trajectory ended here (``eos``, ``stop``, ``length``); None if none did.
        reward: of a leaf.
    """

    parent: int
    round: int
    draws: int
    tokens: int
    text: str
    confidence: float | None
    value: float
    ib_score: float | None
    advantage: float | None
    advantage_global: float | None
    advantage_local: float | None
    finish_reason: FinishReason | None
    reward: float | None


@dataclass(frozen=True, slots=True)
class TreeRecord:
    """One tree.

    Attributes:
        prompt_id: the problem's.
        question: the problem as it stands in the data; the prompt node has what the model was given.
        answer: the gold answer.
        nodes: at least the prompt and one step.
    """

    prompt_id: str
    question: str
    answer: str
    nodes: tuple[NodeRecord, ...]

    @property
    def trajectories(self) -> int:
        """G, the trajectories, a leaf counted once per draw."""
        return sum(node.draws for node in self.nodes if node.finish_reason is not None)

    @property
    def mean_reward(self) -> float:
        """Mean reward of the trajectories."""
        return sum(node.draws * node.reward for node in self.nodes if node.reward is not None) / self.trajectories

    @property
    def is_mixed(self) -> bool:
        """Whether rewards differ, so that there is something to learn."""
        return len({node.reward for node in self.nodes if node.finish_reason is not None}) > 1

    @property
    def mean_ib_score(self) -> float:
        """Mean IB-Score of the nodes that have one."""
        scores = [node.ib_score for node in self.nodes if node.ib_score is not None]
        return sum(scores) / len(scores)

    @property
    def unique_tokens(self) -> int:
        """Sampled tokens, each shared one counted once."""
        return sum(node.tokens for node in self.nodes[1:])

    @property
    def duplicated_tokens(self) -> int:
        """Sampled tokens summed over the trajectories."""
        depth = [0] * len(self.nodes)
        for index, node in enumerate(self.nodes[1:], start=1):
            depth[index] = depth[node.parent] + node.tokens
        return sum(
            node.draws * depth[index] for index, node in enumerate(self.nodes) if node.finish_reason is not None
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; nodes as one list a field."""
        rows = [asdict(node) for node in self.nodes]
        columns = {field.name: [row[field.name] for row in rows] for field in fields(NodeRecord)}
        return {"prompt_id": self.prompt_id, "question": self.question, "answer": self.answer, "nodes": columns}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TreeRecord:
        """What :meth:`to_dict` wrote.

        Raises:
            ValueError: it is not such a thing.
        """
        try:
            columns = [data["nodes"][field.name] for field in fields(NodeRecord)]
            nodes = tuple(NodeRecord(*row) for row in zip(*columns, strict=True))
            record = cls(data["prompt_id"], data["question"], data["answer"], nodes)
            record._check()
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a tree: {error!r}") from None
        return record

    def _check(self) -> None:
        if len(self.nodes) < 2 or not all(isinstance(t, str) for t in (self.prompt_id, self.question, self.answer)):
            raise ValueError(f"tree {self.prompt_id!r} has no step, or its prompt is no text")
        for index, node in enumerate(self.nodes):
            scores = (node.confidence, node.value, node.ib_score, node.reward)
            credit = (node.advantage, node.advantage_global, node.advantage_local)
            if not (
                all(type(count) is int for count in (node.parent, node.round, node.draws, node.tokens))
                and (node.parent == -1 if index == ROOT else 0 <= node.parent < index)
                and isinstance(node.text, str)
                and node.finish_reason in (None, *get_args(FinishReason))
                and (node.finish_reason is None) == (node.reward is None)
                and all(number is None or isinstance(number, int | float) for number in (*scores, *credit))
            ):
                raise ValueError(f"tree {self.prompt_id!r}: node {index} cannot be: {node}")


def record_tree(
    tree: Tree, problem: Problem, advantages: StepAdvantages, ib_score: IBScoreConfig, decode: Decode
) -> TreeRecord:
    """Describe a tree whose rewards are known.

    Args:
        tree: the tree.
        problem: that it was grown for.
        advantages: of its nodes, nan where there is none.
        ib_score: the constants of its scores.
        decode: token ids to text, special tokens included.
    """
    columns = (
        eta2(tree, ib_score),
        tree.values(ib_score.value_estimator),
        ib_scores(tree, ib_score),
        advantages.total,
        advantages.global_part,
        advantages.local_part,
    )
    confidence, value, score, total, global_part, local_part = ([_short(x) for x in column] for column in columns)
    nodes = []
    ends: list[tuple[int, ...]] = []  # of the paths down to each node
    for i, node in enumerate(tree.nodes):
        before = ends[node.parent] if i != ROOT else ()
        ends.append((*before, *node.tokens[-_TAIL:])[-_TAIL:])
        own_value = value[i]
        assert own_value is not None
        nodes.append(
            NodeRecord(
                parent=node.parent,
                round=node.round,
                draws=node.draws,
                tokens=len(node.tokens),
                text=_text_after(before, node.tokens, decode),
                confidence=confidence[i],
                value=own_value,
                ib_score=score[i],
                advantage=total[i],
                advantage_global=global_part[i],
                advantage_local=local_part[i],
                finish_reason=node.finish_reason,
                reward=node.reward,
            )
        )
    return TreeRecord(problem.problem_id, problem.question, problem.answer, tuple(nodes))


def _text_after(before: Sequence[int], tokens: Sequence[int], decode: Decode) -> str:
    """Text of tokens as it reads after others; some decoders strip the space from a first token."""
    together, first = decode([*before, *tokens]), decode([*before])
    return together[len(first) :] if together.startswith(first) else decode([*tokens])


def _short(number: np.float64) -> float | None:
    return float(f"{number:.6g}") if math.isfinite(number) else None
