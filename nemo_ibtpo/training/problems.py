"""The problems of a run, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from nemo_ibtpo.collectives import from_rank_0, gather_from_all
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.mixtures import training_parts, validation_parts
from nemo_ibtpo.config.schema import DataConfig
from nemo_ibtpo.data.load_report import LoadReport
from nemo_ibtpo.data.parts import load_parts
from nemo_ibtpo.data.problems import Problem, problems_digest
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.rewards.gold import keep_verifiable
from nemo_ibtpo.rewards.pool import VerifierPool


@dataclass(frozen=True)
class RunProblems:
    """The problems of a run; no problem is in two data sets.

    Attributes:
        training: by the name of the data set.
        validation: of all its data sets.
        sources: names of the data sets of mixtures, by problem id.
    """

    training: dict[str, list[Problem]]
    validation: list[Problem]
    sources: dict[str, str]


def load_training_and_validation(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, rewards: VerifierPool, console: RunConsole
) -> RunProblems:
    """Training and validation problems. A collective over all ranks.

    Raises:
        UserError: nothing usable was found, or ranks read different data.
    """

    def keep(problems: list[Problem], report: LoadReport) -> list[Problem]:
        return _verifiable(problems, report, rewards)

    validating, parts = validation_parts(data), training_parts(data)
    found = RunProblems({}, [], {})
    for part, problems, report in load_parts([*validating, *parts], data, tokenizer, keep):
        summary = from_rank_0(report.summary)
        if part in validating:
            found.validation.extend(problems)
            console.say(f"validation data: {summary}")
        else:
            found.training[part.name] = problems
            share = part.weight / sum(other.weight for other in parts)
            console.say(f"training data: {summary}{f'; {share:.1%} of the prompts' if part.name else ''}")
        if part.name:
            found.sources.update((problem.problem_id, part.name) for problem in problems)
    return found


def _verifiable(problems: list[Problem], report: LoadReport, rewards: VerifierPool) -> list[Problem]:
    """The problems whose gold answer can be verified."""
    if len(set(gather_from_all(problems_digest(problems)))) > 1:
        raise UserError(
            f"{report.source}: ranks read different problems; give all of them the same files and library versions"
        )
    # Checking gold answers may run into a time limit on one rank and not on another: rank 0 decides for all.
    kept = from_rank_0(lambda: {problem.problem_id for problem in keep_verifiable(problems, rewards, report)})
    return [problem for problem in problems if problem.problem_id in kept]
