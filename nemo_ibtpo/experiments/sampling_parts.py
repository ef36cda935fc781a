"""What an experiment without training samples with: problems, verifier, engine, growth as in a training run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.config.layout import trajectory_tokens
from nemo_ibtpo.config.mixtures import training_parts, validation_parts
from nemo_ibtpo.config.schema import RunConfig
from nemo_ibtpo.data.mixture import make_prompts
from nemo_ibtpo.data.parts import load_parts
from nemo_ibtpo.data.problems import Problem, problems_digest
from nemo_ibtpo.dtypes import TORCH_DTYPES
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


@dataclass(frozen=True)
class SamplingParts:
    """The problems of an experiment and what judges answers to them.

    Attributes:
        tokenizer: the model's.
        rewards: verifies answers in processes of its own.
        problems: the first ones in the order of the run's seed.
    """

    tokenizer: Any
    rewards: VerifierPool
    problems: list[Problem]

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """What tells these problems and this model from others, JSON-able."""
        weights = {file.name: file.stat().st_size for file in sorted(Path(config.model.path).glob("*.safetensors"))}
        return {"problems": problems_digest(self.problems), "weight_bytes": weights}


def device_of(config: RunConfig) -> str:
    """Where the engine and the model run."""
    if config.actor.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.actor.device


@contextmanager
def open_parts(config: RunConfig, dataset: str, num_prompts: int, console: RunConsole) -> Iterator[SamplingParts]:
    """Problems and verifier while the block runs.

    Args:
        config: of the experiment.
        dataset: ``train`` or ``validation``.
        num_prompts: problems to take.
        console: prints what was read.

    Raises:
        UserError: there are too few problems.
    """
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, local_files_only=True)
    rewards = VerifierPool(tokenizer, config.reward)
    try:
        parts = training_parts(config.data) if dataset == "train" else validation_parts(config.data)
        found: dict[str, list[Problem]] = {}
        for part, problems, report in load_parts(
            parts, config.data, tokenizer, lambda problems, report: keep_verifiable(problems, rewards, report)
        ):
            found[part.name] = problems
            console.say(f"data: {report.summary()}")
        weights = {part.name: part.weight for part in parts}
        prompts = make_prompts(found, weights, shuffle=config.data.shuffle, seed=config.seed)
        if len(prompts) < num_prompts:
            raise UserError(f"num_prompts={num_prompts}, but data.{dataset} has {len(prompts)} problems")
        chosen = prompts.next(num_prompts)
        yield SamplingParts(tokenizer, rewards, chosen)
    finally:
        rewards.close()


@contextmanager
def open_engine(config: RunConfig, parts: SamplingParts, output_dir: Path) -> Iterator[RolloutEngine]:
    """A fresh engine while the block runs; it has sampled one token, so that its start counts as nobody's time."""
    engine = make_engine(
        config.rollout,
        config.model.path,
        parts.tokenizer,
        here=True,
        dtype=TORCH_DTYPES[config.model.dtype],
        device=device_of(config),
        max_model_len=trajectory_tokens(config),
        output_dir=output_dir,
        for_training=True,  # the gradient study does what training would do with it
    )
    try:
        engine.submit([RolloutRequest("warm-up", parts.problems[0].prompt_tokens[:1], 1, seed=0)])
        while not engine.poll():
            time.sleep(0.001)
        yield engine
    finally:
        engine.close()


def grow_trees(
    config: RunConfig,
    parts: SamplingParts,
    engine: RolloutEngine,
    problems: Sequence[Problem],
    on_tree: Callable[[int, Tree], None],
) -> None:
    """Grow a tree for each of the problems, many at once; one that comes twice gets two different trees.

    Args:
        config: sampler, IB-Score, limits and seed.
        parts, engine: of the experiment.
        problems: one a tree.
        on_tree: called with the place of its problem and a tree when one is complete.
    """
    parts.rewards.set_problems(list({problem.problem_id: problem for problem in problems}.values()))
    grow(
        [GrowthTask(problem.problem_id, problem.prompt_tokens) for problem in problems],
        source=engine,
        rewards=parts.rewards,
        strategy=make_strategy(config.sampler, config.ib_score, config.rollout.max_new_tokens),
        splitter=make_splitter(config.sampler.segment_tokens, parts.tokenizer),
        max_new_tokens=config.rollout.max_new_tokens,
        seed=config.seed,
        max_in_flight=config.sampler.max_trees_in_flight,
        on_tree=on_tree,
    )
