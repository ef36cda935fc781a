"""The engine that samples continuations: what training asks of it, whatever runs underneath."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nemo_ibtpo.tree.rollouts import RolloutSource


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn; the same for all requests of an engine at a time.

    Attributes:
        temperature: divides the logits; > 0.
        top_p: nucleus mass in (0, 1]; 1 keeps the whole distribution.
        top_k: most tokens kept; 0 keeps all.
        stop: texts that end a response; the token that completes one is kept.
        eos_token_ids: tokens that end a response; kept as its last token.
        repetition_penalty: divides positive and multiplies negative logits of the tokens that the sequence holds
            already, before anything else; 1 changes none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    repetition_penalty: float = 1.0

    @property
    def is_truncated(self) -> bool:
        """Whether tokens are drawn from a part of the vocabulary."""
        return self.top_p < 1 or self.top_k > 0


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine was made.

    Attributes:
        sampled_tokens: tokens drawn.
        prefill_tokens: prefix tokens that were computed.
        cached_prefix_tokens: prefix tokens whose keys and values were re-used.
    """

    sampled_tokens: int = 0
    prefill_tokens: int = 0
    cached_prefix_tokens: int = 0


class RolloutEngine(RolloutSource, Protocol):
    """A sampler. How it takes new weights is its transport's business (``rollout.transport``)."""

    stats: EngineStats
    sampling: SamplingParams

    def set_sampling(self, params: SamplingParams) -> None:
        """Use other sampling parameters from now on (evaluation differs from training); only when idle."""

    def sleep(self) -> None:
        """Free device memory until the next weights, and wait until it is free; only when idle."""

    def close(self) -> None:
        """Release memory and processes."""
