"""Samples every prompt with every sampler on an engine of its own, and reports.

Each sampler gets a fresh engine, so that none finds prefixes cached that another one left, and the same seed: what
samplers draw from the prompt itself is the same, which pairs them. Trees of many prompts grow at once, as in a run.
"""

from __future__ import annotations

import time
from pathlib import Path

from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.experiments.records import RecordStore
from nemo_ibtpo.experiments.sampler_comparison.choices import FOLDER, StudySettings
from nemo_ibtpo.experiments.sampler_comparison.comparison_report import as_table, write_report
from nemo_ibtpo.experiments.sampler_comparison.equal_tokens import Record, SamplerResult, summarise
from nemo_ibtpo.experiments.sampling_parts import SamplingParts, grow_trees, open_engine, open_parts
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.tree.tree import Tree

SAMPLES = "samples.jsonl"
Store = RecordStore[tuple[str, str], Record]


def open_store(directory: Path, identity: dict[str, object]) -> Store:
    """The trees of a comparison, by sampler and prompt."""
    return RecordStore(directory, SAMPLES, Record, lambda record: (record.sampler, record.prompt_id), identity)


def run_comparison(settings: StudySettings, console: RunConsole) -> list[SamplerResult]:
    """Sample what is missing, report, and return the results.

    Raises:
        UserError: there are too few problems, or the directory holds another study.
    """
    config = settings.common
    directory = Path(config.output_dir) / FOLDER
    with open_parts(config, settings.dataset, settings.num_prompts, console) as parts:
        store = open_store(directory, settings.identity() | parts.identity(config))
        if store.records:
            console.say(f"{len(store.records)} trees are in {directory} already")
        for label, own in settings.samplers.items():
            missing = [problem for problem in parts.problems if (label, problem.problem_id) not in store.records]
            if missing:
                _sample(label, own, missing, parts, store, directory, console)
    records = {
        label: [store.records[label, problem.problem_id] for problem in parts.problems] for label in settings.samplers
    }
    independent = _widest_independent(settings)
    results = summarise(records, independent, config.seed)
    console.show(as_table(results).for_terminal())
    written = write_report(directory, results, records[independent] if independent else None)
    console.say(f"written: {', '.join(map(str, written))}")
    return results


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
    parts: SamplingParts,
    store: Store,
    directory: Path,
    console: RunConsole,
) -> None:
    with open_engine(config, parts, directory) as engine, console.phase(label, len(problems), "trees") as phase:
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

        grow_trees(config, parts, engine, problems, keep)
