"""Samples every prompt with every sampler on an engine of its own, and reports.

Each sampler gets a fresh engine, so that none finds prefixes cached that another one left, and the same seed: what
samplers draw from the prompt itself is the same, which pairs them. Trees of many prompts grow at once, as in a run.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.layout import trajectory_tokens
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.data.loader import PromptLoader
from nemo_ibtpo.data.loading import load_problems
from nemo_ibtpo.data.problems import Problem, problems_digest
from nemo_ibtpo.dtypes import TORCH_DTYPES
from nemo_ibtpo.experiments.records import Record, RecordStore
from nemo_ibtpo.experiments.sampler_comparison.choices import FOLDER, StudySettings
from nemo_ibtpo.experiments.sampler_comparison.equal_tokens import SamplerResult, summarise
from nemo_ibtpo.experiments.sampler_comparison.sampler_table import as_table, write_report
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.rewards.gold import keep_verifiable
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.rollout.engine import RolloutEngine
from nemo_ibtpo.rollout.factory import make_engine
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.growth import GrowthTask, grow
from nemo_ibtpo.tree.rollouts import RolloutRequest
from nemo_ibtpo.tree.steps import make_splitter
from nemo_ibtpo.tree.tree import Tree


def run_study(settings: StudySettings, console: RunConsole) -> list[SamplerResult]:
    """Sample what is missing, report, and return the results.

    Raises:
        UserError: there are too few problems, or the directory holds another study.
    """
    config = settings.common
    directory = Path(config.output_dir) / FOLDER
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, local_files_only=True)
    rewards = VerifierPool(tokenizer, config.reward)
    try:
        problems = _problems(settings, tokenizer, rewards, console)
        weights = {file.name: file.stat().st_size for file in sorted(Path(config.model.path).glob("*.safetensors"))}
        identity = settings.identity() | {"problems": problems_digest(problems), "weight_bytes": weights}
        store = RecordStore(directory, identity)
        if store.records:
            console.say(f"{len(store.records)} trees are in {directory} already")
        for label, own in settings.samplers.items():
            missing = [problem for problem in problems if (label, problem.problem_id) not in store.records]
            if missing:
                _sample(label, own, missing, tokenizer, rewards, store, console)
    finally:
        rewards.close()
    records = {
        label: [store.records[label, problem.problem_id] for problem in problems] for label in settings.samplers
    }
    independent = _widest_independent(settings)
    results = summarise(records, independent, config.seed)
    console.show(as_table(results))
    written = write_report(directory, results, records[independent] if independent else None)
    console.say(f"written: {', '.join(map(str, written))}")
    return results


def _problems(settings: StudySettings, tokenizer: Any, rewards: VerifierPool, console: RunConsole) -> list[Problem]:
    data = settings.common.data
    problems, report = load_problems(getattr(data, settings.dataset), data, tokenizer)
    problems = keep_verifiable(problems, rewards, report)
    console.say(f"data: {report.summary()}")
    if len(problems) < settings.num_prompts:
        raise UserError(f"num_prompts={settings.num_prompts}, but {report.source} has {len(problems)} problems")
    return PromptLoader(problems, data.shuffle, settings.common.seed).next(settings.num_prompts)


def _widest_independent(settings: StudySettings) -> str | None:
    sizes = {
        label: config.sampler.trajectories_per_prompt
        for label, config in settings.samplers.items()
        if config.sampler.name == "independent"
    }
    return max(sizes, key=sizes.__getitem__, default=None)


def _sample(
    label: str,
    config: RunConfig,
    problems: list[Problem],
    tokenizer: Any,
    rewards: VerifierPool,
    store: RecordStore,
    console: RunConsole,
) -> None:
    engine = _engine(config, tokenizer)
    rewards.set_problems(problems)
    try:
        _warm_up(engine, problems[0])
        with console.phase(label, len(problems), "trees") as phase:
            last, stats = time.perf_counter(), engine.stats
            prefill, cached = stats.prefill_tokens, stats.cached_prefix_tokens

            def keep(index: int, tree: Tree) -> None:
                nonlocal last, prefill, cached
                now, stats = time.perf_counter(), engine.stats
                store.add(
                    Record(
                        sampler=label,
                        prompt_id=problems[index].problem_id,
                        rewards=tuple(tree.rewards().tolist()),
                        sampled_tokens=tree.sampled_tokens,
                        unique_tokens=tree.unique_tokens,
                        duplicated_tokens=tree.duplicated_tokens,
                        seconds=now - last,
                        prefill_tokens=stats.prefill_tokens - prefill,
                        cached_prefix_tokens=stats.cached_prefix_tokens - cached,
                    )
                )
                last, prefill, cached = now, stats.prefill_tokens, stats.cached_prefix_tokens
                phase.advance()

            grow(
                [GrowthTask(problem.problem_id, problem.prompt_tokens) for problem in problems],
                source=engine,
                rewards=rewards,
                strategy=make_strategy(config.sampler, config.ib_score, config.rollout.max_new_tokens),
                splitter=make_splitter(config.sampler.segment_tokens, tokenizer),
                max_new_tokens=config.rollout.max_new_tokens,
                seed=config.seed,
                max_in_flight=config.sampler.max_trees_in_flight,
                on_tree=keep,
            )
    finally:
        engine.close()


def _engine(config: RunConfig, tokenizer: Any) -> RolloutEngine:
    device = config.actor.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return make_engine(
        config.rollout,
        config.model.path,
        tokenizer,
        here=True,
        dtype=TORCH_DTYPES[config.model.dtype],
        device=device,
        max_model_len=trajectory_tokens(config),
        output_dir=Path(config.output_dir) / FOLDER,
    )


def _warm_up(engine: RolloutEngine, problem: Problem) -> None:
    """One token, so that what an engine does once is not counted as the first sampler's time."""
    engine.submit([RolloutRequest("warm-up", problem.prompt_tokens[:1], 1, seed=0)])
    while not engine.poll():
        time.sleep(0.001)
