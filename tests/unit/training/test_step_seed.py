"""What tells the trees of steps, runs and repetitions apart; to resume, a step needs the seed that it had."""

from __future__ import annotations

from itertools import product

from nemo_ibtpo.training.sampling import step_seed


def test_steps_runs_and_repetitions_have_their_own() -> None:
    cases = list(product((0, 1, 2**31), (0, 1, 7), (1, 2, 100_000)))
    assert len({step_seed(*case) for case in cases}) == len(cases)
    assert step_seed(3, 0, 5) == 3 * 2**32 + 5, "checkpoints hold trees that were begun with such seeds"
