"""Ranks of test_resume.py that carry trees over a step; one may be asked to stop in the middle of sampling.

The last argument is the step in which that happens, 0 for never. Nothing here depends on the machine's speed, so that
even the last bits of log-probabilities, which depend on what an engine decodes side by side, are the same: verifiers
are waited for, and ranks tell each other what they know in every turn.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Hashable

import resume_worker
import torch.distributed as dist

from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.rewards.worker import Judgement
from nemo_ibtpo.training import sampling
from nemo_ibtpo.training.sampling import Sampling
from nemo_ibtpo.tree.carry_over import Horizon


def wait_for_verifiers() -> None:
    submit, poll = VerifierPool.submit, VerifierPool.poll_judgements
    waiting: set[Hashable] = set()

    def noted(self: VerifierPool, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
        waiting.add(key)
        submit(self, key, prompt_id, response_tokens)

    def patient(self: VerifierPool) -> list[tuple[Hashable, Judgement]]:
        answered: list[tuple[Hashable, Judgement]] = []
        while waiting:
            new = poll(self)
            answered += new
            waiting.difference_update(key for key, _ in new)
        return sorted(answered, key=lambda pair: repr(pair[0]))

    VerifierPool.submit, VerifierPool.poll_judgements = noted, patient  # type: ignore[method-assign]


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
    wait_for_verifiers()
    sampling._EXCHANGE_PERIOD_S = 0.0
    stop_in(int(sys.argv.pop()))
    resume_worker.main()
