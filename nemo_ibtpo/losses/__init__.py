"""Losses on one typed input, one small file each; pure torch.

The denominator belongs to the whole update, over all ranks and micro-batches. Losses of micro-batches therefore add
up, and so do the metrics, which are sums until :func:`mean_metrics` divides them.
"""

from nemo_ibtpo.losses.cispo import CISPOLoss
from nemo_ibtpo.losses.clipped import ClippedLoss
from nemo_ibtpo.losses.factory import make_loss
from nemo_ibtpo.losses.gspo import GSPOLoss
from nemo_ibtpo.losses.importance import importance_weighted, with_importance
from nemo_ibtpo.losses.inputs import Loss, LossInputs, LossOutput
from nemo_ibtpo.losses.metrics import mean_metrics

__all__ = [
    "CISPOLoss",
    "ClippedLoss",
    "GSPOLoss",
    "Loss",
    "LossInputs",
    "LossOutput",
    "importance_weighted",
    "make_loss",
    "mean_metrics",
    "with_importance",
]
