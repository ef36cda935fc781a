"""One reasoning step of a tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
        versions: version of the policy that sampled each token; empty where versions are not counted.
        kept: of each token the tokens that it was drawn from, where the distribution was truncated (top-p, top-k):
            their ids as the bytes of an int32 array. Empty where it was drawn from the whole vocabulary.
        round: the round of growth that created the node (0 for the first trajectories).
        children: indices of the child steps, oldest first.
        finish_reason: why the trajectory ended here; None for a step that goes on.
        reward: outcome reward in [0, 1] of a leaf, None until it is known and for every other node.
        logprob: log-probability of the whole step, the sum of ``logprobs``.
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
    versions: tuple[int, ...] = ()
    kept: tuple[bytes, ...] = ()
    logprob: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.logprob = sum(self.logprobs)

    @property
    def is_leaf(self) -> bool:
        """Whether a trajectory ends with this step."""
        return self.finish_reason is not None
