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
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["eos", "stop", "length"]
ROOT = 0


@dataclass(slots=True)
class Node:
    """One step.

    Attributes:
        index: position in ``Tree.nodes``.
        parent: index of the parent, -1 for the root.
        tokens: token ids as they were sampled (the prompt's ids at the root).
        logprobs: log-probability (nats) of each token under the distribution that sampled it.
        draws: how often this step was sampled freely at its parent (0 at the root).
        round: the round of growth that created the node (0 for the first trajectories).
        children: indices of the child steps, oldest first.
        finish_reason: why the trajectory ended here; None for a step that goes on.
        reward: outcome reward in [0, 1] of a leaf, None until it is known and for every other node.
    """

    index: int
    parent: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    draws: int = 0
    round: int = 0
    children: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    reward: float | None = None

    @property
    def is_leaf(self) -> bool:
        """Whether a trajectory ends with this step."""
        return self.finish_reason is not None
