"""The settings of a loss, with what a test needs in their place."""

from __future__ import annotations

from typing import Any

from nemo_ibtpo.config.schema import LossConfig


def loss_config(name: str, **others: Any) -> LossConfig:
    """A loss without a KL term, an entropy bonus, importance weights and a gate."""
    settings: dict[str, Any] = {
        "clip_eps_low": 0.2,
        "clip_eps_high": 0.28,
        "kl_coef": 0.0,
        "entropy_coef": 0.0,
        "normalization": "token_mean",
        "token_weight": "trajectories",
        "denominator": "kept",
        "tis_cap": 0.0,
        "max_token_mult_prob_error": 0.0,
    }
    return LossConfig(name=name, **settings | others)
