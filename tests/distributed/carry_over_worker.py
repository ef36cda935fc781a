"""Ranks of test_resume.py that carry trees over a step; one may be asked to stop in the middle of sampling.

The last argument is the step in which that happens, 0 for never.
"""

from __future__ import annotations

import os
import signal
import sys

import resume_worker
import torch.distributed as dist
from patient_ranks import be_patient

from nemo_ibtpo.training.sampling import Sampling
from nemo_ibtpo.tree.carry_over import Horizon


def stop_in(step: int) -> None:
    """Rank 1 is asked to stop at the third exchange of a step, of which it alone knows."""
    sample, exchange = Sampling.training_trees, Sampling._exchange
    seen: list[int] = []

    def counting(self: Sampling, now: int):
        seen[:] = [now, 0]
        return sample(self, now)

    def stopping(self: Sampling, horizon: Horizon) -> list[Horizon]:
        seen[1] += 1
        if seen == [step, 3] and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return exchange(self, horizon)

    Sampling.training_trees, Sampling._exchange = counting, stopping  # type: ignore[method-assign]


if __name__ == "__main__":
    be_patient()
    stop_in(int(sys.argv.pop()))
    resume_worker.main()
