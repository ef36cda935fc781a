"""The defaults of ``reward``, with what a test needs in their place."""

from __future__ import annotations

import dataclasses
from typing import Any

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import RewardConfig


def reward_config(num_workers: int, timeout_s: float, **others: Any) -> RewardConfig:
    """How responses are judged."""
    defaults = compose("tiny", []).reward
    return dataclasses.replace(defaults, num_workers=num_workers, timeout_s=timeout_s, **others)
