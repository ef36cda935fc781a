"""What makes a run with ``sampler.carry_over`` the same to the last bit, whatever the speed of the machine.

The last bits of log-probabilities depend on what an engine decodes side by side, and with carry-over that depends on
when a verifier answers and when ranks hear of each other. Here verifiers are waited for, and ranks tell each other
what they know in every turn. As a script it is ``nemo-ibtpo`` with this.
"""

from __future__ import annotations

import time
from collections.abc import Hashable

from nemo_ibtpo.cli import entry
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.rewards.worker import Judgement
from nemo_ibtpo.training import sampling


def be_patient() -> None:
    """Change verifiers and exchanges of this process."""
    submit, poll = VerifierPool.submit, VerifierPool.poll_judgements
    waiting: set[Hashable] = set()

    def noted(self: VerifierPool, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
        waiting.add(key)
        submit(self, key, prompt_id, response_tokens)

    def patient(self: VerifierPool) -> list[tuple[Hashable, Judgement]]:
        answered: list[tuple[Hashable, Judgement]] = []
        while waiting:
            time.sleep(0.001)
            new = poll(self)
            answered += new
            waiting.difference_update(key for key, _ in new)
        return sorted(answered, key=lambda pair: repr(pair[0]))

    VerifierPool.submit, VerifierPool.poll_judgements = noted, patient  # type: ignore[method-assign]
    sampling._EXCHANGE_PERIOD_S = 0.0


if __name__ == "__main__":
    be_patient()
    entry()
