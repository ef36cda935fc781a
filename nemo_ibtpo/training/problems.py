"""The problems of a run, the same on every rank."""

from __future__ import annotations

from collections.abc import Collection

from transformers import PreTrainedTokenizerBase

from nemo_ibtpo.collectives import from_rank_0, gather_from_all
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import DataConfig, DatasetConfig
from nemo_ibtpo.data.loading import leave_out, load_problems
from nemo_ibtpo.data.problems import Problem, problems_digest
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.rewards.gold import keep_verifiable
from nemo_ibtpo.rewards.pool import VerifierPool


def load_training_and_validation(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, rewards: VerifierPool, console: RunConsole
) -> tuple[list[Problem], list[Problem]]:
    """Training and validation problems; no problem is in both. A collective over all ranks.

    Raises:
        UserError: nothing usable was found, or ranks read different data.
    """
    validation, report = _load(data.validation, data, tokenizer, rewards, held_out=())
    console.say(f"validation data: {report}")
    held_out = {problem.problem_id for problem in validation}
    training, report = _load(data.train, data, tokenizer, rewards, held_out)
    console.say(f"training data: {report}")
    return training, validation


def _load(
    dataset: DatasetConfig,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    rewards: VerifierPool,
    held_out: Collection[str],
) -> tuple[list[Problem], str]:
    """The problems of a data set whose gold answer can be verified, and a line about them."""
    problems, report = load_problems(dataset, data, tokenizer)
    problems = leave_out(problems, held_out, report)
    if len(set(gather_from_all(problems_digest(problems)))) > 1:
        raise UserError(
            f"{report.source}: ranks read different problems; give all of them the same files and library versions"
        )

    def verifiable() -> tuple[set[str], str]:
        kept = keep_verifiable(problems, rewards, report)
        return {problem.problem_id for problem in kept}, report.summary()

    # Checking gold answers may run into a time limit on one rank and not on another: rank 0 decides for all.
    kept_ids, summary = from_rank_0(verifiable)
    return [problem for problem in problems if problem.problem_id in kept_ids], summary
