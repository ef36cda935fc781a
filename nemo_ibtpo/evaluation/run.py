"""An evaluation from its configuration: builds the parts, samples, verifies, and leaves everything on disk.

Below ``output_dir/<benchmark>`` it writes ``journal.jsonl`` while it runs, then ``samples.jsonl``, ``summary.json``
and ``summary.md``. One that was killed goes on when it is started again; one that is finished is only read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.schema import EvalConfig
from nemo_ibtpo.data.loading import load_problems
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.dtypes import TORCH_DTYPES
from nemo_ibtpo.evaluation.benchmarks import row_preparation
from nemo_ibtpo.evaluation.digest import model_digest
from nemo_ibtpo.evaluation.evaluator import evaluate
from nemo_ibtpo.evaluation.journal import Journal, JournaledSource
from nemo_ibtpo.evaluation.report import SAMPLES, write_summary
from nemo_ibtpo.evaluation.result import EvaluationResult
from nemo_ibtpo.evaluation.settings import describe_difference, evaluation_settings
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.rewards.gold import keep_verifiable
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.rollout.factory import make_engine
from nemo_ibtpo.tree.growth import GrowthProgress
from nemo_ibtpo.tree.steps import StepSplitter


def run_evaluation(config: EvalConfig, console: RunConsole) -> EvaluationResult:
    """Evaluate as configured; the configuration has been validated.

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
        settings = evaluation_settings(config, problems, model_digest(model_path))
        if (directory / SAMPLES).is_file():
            result = _finished(directory, settings)
            console.say(f"{name}: already evaluated, read from {directory / SAMPLES}")
        else:
            result = _sample(config, problems, settings, tokenizer, rewards, directory, console)
    finally:
        rewards.close()
    write_summary(result, directory)
    return result


def _load(config: EvalConfig, tokenizer: PreTrainedTokenizerBase, rewards: VerifierPool) -> tuple[list[Problem], str]:
    benchmark = config.benchmark
    loaded, report = load_problems(benchmark.data, benchmark, tokenizer, row_preparation(benchmark))
    problems = keep_verifiable(loaded, rewards, report)
    if report.skipped and not benchmark.allow_left_out:
        raise UserError(
            f"benchmark {benchmark.name}: of {report.rows} rows some cannot be used: {report.describe_skipped()}; "
            "fewer problems are another benchmark: mend that, or accept it with benchmark.allow_left_out=true"
        )
    return problems, report.summary()


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
    benchmark = config.benchmark
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with Journal(directory / "journal.jsonl", settings) as journal:
        total = len(problems) * benchmark.samples_per_problem
        if journal.known:
            console.say(f"{benchmark.name}: going on after {len(journal.known):,} of {total:,} samples")
        engine = make_engine(
            config.rollout,
            Path(config.model.path),
            tokenizer,
            here=True,
            dtype=TORCH_DTYPES[config.model.dtype],
            device=device,
            max_model_len=benchmark.max_prompt_tokens + config.rollout.max_new_tokens,
            output_dir=directory,
        )
        rewards.set_problems(problems)
        try:
            with console.phase(benchmark.name, total, "samples", already=len(journal.known)) as phase:

                def advance(progress: GrowthProgress) -> None:
                    phase.advance(max(0, progress.trajectories - phase.done))

                result = evaluate(
                    problems,
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
        result.to_jsonl(directory / SAMPLES)
        journal.remove()
    return result
