"""``gspo``: the clipped surrogate with one ratio for a whole sequence (GSPO, arXiv 2507.18071).

    s = exp(mean over the tokens of the sequence of log r)
    surrogate = -positive * min(s_t, 1 + eps_high) + negative * max(s_t, 1 - eps_low)

``s_t`` has the value of ``s`` and the gradient of its own token, ``sg(s) * pi_theta(t) / sg(pi_theta(t))``:
GSPO-token, the paper's form for advantages that differ within a sequence. Where they do not, its gradient is that of
``s``, since the gradients of log r of the n tokens, each of weight 1 / n, add up to that of log s.

What a sequence is in a tree (our choice): a **run**, the tokens between two branches. Exactly the same trajectories
go through all tokens of a run, so that the sums over these trajectories that make one pass stand for all of them
(``methods/credit.py``) stay exact. On chains that share nothing (``sampler.merge: false``) a run is the whole
response, and this is GSPO as published. The other choice, one ratio for each path, would give a shared token as many
ratios as trajectories, and needs the tokens of all these paths in one pass. A run is never cut
(``tree/microbatches.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nemo_ibtpo.losses.clipped import ClippedLoss
from nemo_ibtpo.losses.inputs import LossInputs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class GSPOLoss(ClippedLoss):
    """The clipped surrogate on the ratios of runs."""

    whole_runs: ClassVar[bool] = True

    def ratio(self, inputs: LossInputs) -> Tensor:
        """See the module."""
        log_r, run = inputs.logprobs - inputs.old_logprobs, inputs.run

        def summed(values_N: Tensor) -> Tensor:
            # [N], for there are no more runs than tokens. It adds in one order on a GPU, too; index_add does not.
            return values_N.new_zeros(len(run)).index_put_((run,), values_N, accumulate=True)

        mean = summed(log_r.detach()) / summed(log_r.new_ones(len(run))).clamp(min=1)
        return (mean[run] + inputs.logprobs - inputs.logprobs.detach()).exp()
