"""An evaluation from its configuration: builds the parts, samples, verifies, and leaves everything on disk.

Below ``output_dir/<benchmark>`` it writes ``journal.jsonl`` while it runs, then ``samples.jsonl``, ``summary.json``
and ``summary.md``. One that was killed goes on when it is started again; one that is finished is only read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from nemo_ibtpo.collectives import from_rank_0, gather_from_all
from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import EvalConfig
from nemo_ibtpo.data.loading import load_problems
from nemo_ibtpo.data.problems import Problem, problems_digest
from nemo_ibtpo.dtypes import TORCH_DTYPES
from nemo_ibtpo.evaluation.benchmarks import row_preparation
from nemo_ibtpo.evaluation.digest import model_digest
from nemo_ibtpo.evaluation.evaluator import evaluate
from nemo_ibtpo.evaluation.journal import JournaledSource, open_journal
from nemo_ibtpo.evaluation.ranks import device_of_rank, engines_of
from nemo_ibtpo.evaluation.result import EvaluationResult, merge
from nemo_ibtpo.evaluation.settings import describe_difference, evaluation_settings
from nemo_ibtpo.evaluation.summary import SAMPLES, write_summary
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.rewards.gold import keep_verifiable
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.rollout.factory import make_engine
from nemo_ibtpo.tree.growth import GrowthProgress
from nemo_ibtpo.tree.steps import StepSplitter


def run_evaluation(config: EvalConfig, console: RunConsole) -> EvaluationResult:
    """Evaluate as configured, on this rank (within ``ranks.joined_ranks``); the configuration has been validated.

    Problems are dealt to the ranks that own an engine; each sample depends on its problem and its number alone.

    Returns:
        The samples of all ranks, on every rank.

    Raises:
        UserError: something the user can mend, found before or during the evaluation.
    """
    transformers_logging.disable_progress_bar()
    name, model_path = config.benchmark.name, Path(config.model.path)
    directory = Path(config.output_dir) / name
    tokenizer = AutoTokenizer.from_pretrained(str(model_path), local_files_only=True)
    rewards = VerifierPool(tokenizer, config.reward)
    try:
        problems, report = _load(config, tokenizer, rewards)
        console.say(f"{name} data: {report}")
        settings = evaluation_settings(config, problems, from_rank_0(lambda: model_digest(model_path)))
        if from_rank_0(lambda: (directory / SAMPLES).is_file()):
            result = _finished(directory, settings)
            console.say(f"{name}: already evaluated, read from {directory / SAMPLES}")
        else:
            result = _sample(config, problems, settings, tokenizer, rewards, directory, console)
    finally:
        rewards.close()
    from_rank_0(lambda: write_summary(result, directory))
    return result


def _load(config: EvalConfig, tokenizer: PreTrainedTokenizerBase, rewards: VerifierPool) -> tuple[list[Problem], str]:
    benchmark = config.benchmark
    loaded, report = load_problems(benchmark.data, benchmark, tokenizer, row_preparation(benchmark))
    if len(set(gather_from_all(problems_digest(loaded)))) > 1:
        raise UserError(f"benchmark {benchmark.name}: ranks read different problems; give all of them the same files")

    def verifiable() -> tuple[set[str], str]:
        kept = keep_verifiable(loaded, rewards, report)
        if report.skipped and not benchmark.allow_left_out:
            raise UserError(
                f"benchmark {benchmark.name}: of {report.rows} rows some cannot be used: {report.describe_skipped()}"
                "; fewer problems are another benchmark: mend that, or accept it with benchmark.allow_left_out=true"
            )
        return {problem.problem_id for problem in kept}, report.summary()

    kept, summary = from_rank_0(verifiable)
    return [problem for problem in loaded if problem.problem_id in kept], summary


def _finished(directory: Path, settings: dict[str, Any]) -> EvaluationResult:
    result = EvaluationResult.from_jsonl(directory / SAMPLES)
    if difference := describe_difference(result.settings, settings):
        raise UserError(
            f"{directory} holds a finished evaluation with other settings ({difference}); choose another output_dir"
        )
    return result


def _sample(
    config: EvalConfig,
    problems: list[Problem],
    settings: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    rewards: VerifierPool,
    directory: Path,
    console: RunConsole,
) -> EvaluationResult:
    benchmark, engines, rank = config.benchmark, engines_of(config.rollout), dist.get_rank()
    mine = engines.mine(problems)
    with open_journal(directory, settings, rank, dist.get_world_size()) as journal:
        for known in gather_from_all(journal.known):
            journal.known.update(known)
        total, share = (len(part) * benchmark.samples_per_problem for part in (problems, mine))
        if journal.known:
            console.say(f"{benchmark.name}: going on after {len(journal.known):,} of {total:,} samples")
        engine = make_engine(
            config.rollout,
            Path(config.model.path),
            tokenizer,
            here=rank in engines.ranks,
            dtype=TORCH_DTYPES[config.model.dtype],
            device=device_of_rank(config.device),
            max_model_len=benchmark.max_prompt_tokens + config.rollout.max_new_tokens,
            output_dir=directory,
            for_training=False,
        )
        rewards.set_problems(mine)
        try:
            with console.phase(benchmark.name, share, "samples", already=0) as phase:

                def advance(progress: GrowthProgress) -> None:
                    phase.advance(max(0, progress.trajectories - phase.done))

                result = evaluate(
                    mine,
                    JournaledSource(engine, journal),
                    rewards,
                    splitter=StepSplitter(tokenizer),
                    samples_per_problem=benchmark.samples_per_problem,
                    max_new_tokens=config.rollout.max_new_tokens,
                    seed=config.seed,
                    settings=settings,
                    on_progress=advance,
                )
        finally:
            engine.close()
        result = merge(gather_from_all(result))
        from_rank_0(lambda: result.to_jsonl(directory / SAMPLES))
        journal.remove()
    return result
