"""What growth asks of a sampler and of a verifier, and what it gets back.

``growth`` is written against these small protocols, so that a tree can be grown on any engine, by a toy
sampler in a test as well as by vLLM.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nemo_ibtpo.tree.node import FinishReason


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One continuation to sample.

    Attributes:
        request_id: chosen by the caller, returned with the rollout; unique among unfinished requests.
        prefix: token ids to continue: the prompt and the steps down to the branch point.
        max_new_tokens: most tokens to sample; at least 1.
        seed: the continuation depends on the weights, the prefix and this seed only.
    """

    request_id: Hashable
    prefix: tuple[int, ...]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """A finished continuation.

    Attributes:
        request_id: the request's.
        tokens: sampled token ids, at least one; an end-of-sequence token is included.
        logprobs: log-probability (nats) of each token under the sampling distribution.
        finish_reason: ``eos`` (end-of-sequence token), ``stop`` (stop string) or ``length``.
        kept: of each token the set that it was drawn from, where sampling is truncated; see ``Node.kept``.
    """

    request_id: Hashable
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    kept: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What had been sampled of a continuation that was cut off.

    Attributes:
        request_id: the request's.
        tokens: sampled token ids, perhaps none.
        logprobs: log-probability (nats) of each token under the sampling distribution.
    """

    request_id: Hashable
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


class RolloutSource(Protocol):
    """Samples continuations; new requests may join while others run."""

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Accept requests without waiting for them."""

    def poll(self) -> list[Rollout]:
        """Advance the work a little and return what has finished since the last call (perhaps nothing)."""

    def progress(self, at_least: Mapping[Hashable, int]) -> Mapping[Hashable, int]:
        """Tokens drawn so far, at least, for those requests that have so many and go on.

        Reports may come late or be left out: growth waits longer then, and grows the same trees.

        Args:
            at_least: tokens from which on somebody wants to hear of a request.
        """

    def cut(self, at_least: Mapping[Hashable, int]) -> list[Unfinished]:
        """End all requests, and return what was sampled of those that have not finished.

        Rollouts that finish meanwhile come with the next :meth:`poll`. The source is idle then.

        Args:
            at_least: tokens that a request is to have before it ends; 0 for those that are left out.
        """


class RewardSource(Protocol):
    """Scores finished responses, possibly in other processes."""

    def submit(self, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
        """Accept a response without waiting for its score."""

    def poll(self) -> list[tuple[Hashable, float]]:
        """Rewards in [0, 1] that have become known since the last call."""
