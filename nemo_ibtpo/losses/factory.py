"""From ``loss.name`` to a loss."""

from __future__ import annotations

from nemo_ibtpo.config.schema import LossConfig
from nemo_ibtpo.losses.cispo import CISPOLoss
from nemo_ibtpo.losses.clipped import ClippedLoss
from nemo_ibtpo.losses.gspo import GSPOLoss
from nemo_ibtpo.losses.policy import PolicyLoss

LOSSES: dict[str, type[PolicyLoss]] = {"clipped": ClippedLoss, "cispo": CISPOLoss, "gspo": GSPOLoss}


def make_loss(config: LossConfig) -> PolicyLoss:
    """The policy loss that the section ``loss`` describes."""
    return LOSSES[config.name](config)
