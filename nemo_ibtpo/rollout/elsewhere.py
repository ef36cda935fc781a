"""The engine of a rank that has none."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from nemo_ibtpo.rollout.engine import EngineStats, SamplingParams
from nemo_ibtpo.tree.rollouts import Rollout, RolloutRequest, Unfinished


class EngineElsewhere:
    """Stands in on a rank whose rollouts are sampled by another rank's engine.

    Such a rank is dealt no prompts.
    """

    def __init__(self, sampling: SamplingParams) -> None:
        self.stats = EngineStats()
        self.sampling = sampling

    def set_sampling(self, params: SamplingParams) -> None:
        """Keep the parameters, which results are labelled with."""
        self.sampling = params

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Refuse requests, of which a rank without an engine should have none."""
        if requests:
            raise RuntimeError(f"this rank has no engine, but was given {len(requests)} requests")

    def poll(self) -> list[Rollout]:
        """Nothing, ever."""
        return []

    def progress(self, at_least: Mapping[Hashable, int]) -> Mapping[Hashable, int]:
        """Nothing, ever."""
        return {}

    def cut(self, at_least: Mapping[Hashable, int]) -> list[Unfinished]:
        """Nothing, ever."""
        return []

    def sleep(self) -> None:
        """Nothing to free."""

    def close(self) -> None:
        """Nothing to release."""
