"""A run that is killed again and again ends as if nothing had happened.

Why it matters: on a cluster jobs end by SIGKILL, by a lost node, by a time limit; a run of days meets all of them.
Two ranks train with a checkpoint after every step, so that about half of the kills fall into one being written. The
finished run is compared bit for bit with one that was never disturbed, and every process must have gone. Trees are
carried over from step to step, so that at most moments some are half grown.

The suite takes one warning, one kill and two signals; ``make test-crash`` takes 20 kills and more moments, and the
same of a run without such trees. Not exercised: a machine that loses its power (what is on the disk then depends on
fsync, which is called).
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from comparing_runs import assert_same_run
from crash.interrupted import Attempt, kill
from tiny_job import BITWISE, write_tiny_job

KILLS = int(os.environ.get("NEMO_IBTPO_CRASH_KILLS", "1"))
STEPS = 5 + 3 * KILLS
WORDS = [
    "actor.tensor_model_parallel_size=2",
    "rollout.num_replicas=null",
    "checkpoint.save_period=1",
    "trainer.val_period=3",
    f"trainer.max_steps={STEPS}",
]
CARRY = [
    "sampler.max_sequences_per_tree=2",
    "sampler.carry_over=0.6",  # 5 trees a step, 8 in flight, and 4 that may be started: there are 12 problems
    "sampler.max_policy_lag=2",
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module", params=[WORDS + CARRY, [*WORDS, BITWISE]] if KILLS > 1 else [WORDS + CARRY])
def words(request: pytest.FixtureRequest) -> list[str]:
    return request.param


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    attempt = Attempt(recipe, output, *words)
    assert attempt.wait() == 0, attempt.said[-6000:]
    return output


# When a signal comes, before and while the data is read and in training, and to whom: torchrun hands it on.
SIGNALS = [("met", "ranks"), ("step 1", "launcher")]
if KILLS > 1:
    SIGNALS += [("validation data: ", "ranks"), ("training data: ", "ranks"), ("step 1", "ranks")]


def finish(recipe: Path, output: Path, words: list[str]) -> str:
    attempt = Attempt(recipe, output, *words)
    assert attempt.wait() == 0, attempt.said[-6000:]
    return attempt.said


def stopped(attempt: Attempt, output: Path, reason: str) -> int:
    """The step at which a run has stopped because it was asked to."""
    assert attempt.wait() == 1  # torchrun's own status says nothing
    status = json.loads((output / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("requeue", reason), attempt.said[-6000:]
    assert "nemo_ibtpo/" not in attempt.said, "a traceback of ours besides that of torchrun"
    return int(status["step"])


@pytest.mark.timeout(3600)
def test_warned_and_killed(recipe: Path, words: list[str], undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    attempt = Attempt(recipe, output, *words)
    one = attempt.ranks()[1]
    attempt.wait_for_step(2)
    os.kill(one, signal.SIGUSR1)
    step = stopped(attempt, output, "SIGUSR1")
    assert step >= 2 and "exitcode  : 85" in attempt.said

    rng = random.Random(KILLS)
    for number in range(KILLS):
        attempt = Attempt(recipe, output, *words)
        ranks = attempt.ranks()
        if number == 0:  # at least one falls into training, whatever the speed of the machine
            attempt.wait_for_step(step + 1)
            assert f"resuming after step {step} of {STEPS}" in attempt.said
            time.sleep(rng.uniform(0, 1))
        else:  # or after two steps, so that none is left without a kill on a fast machine
            attempt.wait_for_step(step + 2, at_most_s=rng.uniform(0, 8))
        kill(ranks if rng.random() < 0.3 else [rng.choice(ranks)])
        attempt.wait()
        state = json.loads((output / "status.json").read_text())["state"]
        assert state == "running", attempt.said[-6000:]  # nobody was there to write another
        step = attempt.last_step()
    finish(recipe, output, words)
    assert_same_run(output, undisturbed, STEPS)


@pytest.mark.parametrize(("phase", "to"), SIGNALS)
def test_signals(recipe: Path, tmp_path: Path, phase: str, to: str) -> None:
    """As torchrun sends it when a rank is lost, and Slurm: the ranks save and leave, no helper goes before."""
    output = tmp_path / "out"
    attempt = Attempt(recipe, output, *WORDS)
    ranks = attempt.ranks()
    if phase == "step 1":
        attempt.wait_for_step(1)
    elif phase != "met":
        attempt.wait_for_line(phase)
    if to == "launcher":
        os.kill(attempt.launcher, signal.SIGTERM)
    for rank in ranks if to == "ranks" else []:
        os.killpg(rank, signal.SIGTERM)
    stopped(attempt, output, "SIGTERM")
