"""Growing trees on vLLM against sampling independent responses: wall time, tokens, worth of the trajectories.

Four sides in turn in one run, on the same engine, model, prompts and limits, each with an empty prefix cache:

- ``independent_8``, ``independent_12``: so many independent responses a prompt;
- ``ib_barrier_free``: 12 trajectories a prompt grown by the IB-Score, as training does it;
- ``ib_rounds``: the same with a barrier: a round begins when the round before is sampled and scored for all prompts.

Rewards come from the real verifier processes. Ratios are to ``independent_8``, medians over the repetitions.

    make demo                      # makes the model
    python benchmarks/sampling.py

The last line is JSON: for each side ``wall_ratio``, ``token_ratio``, ``wall_per_token_ratio``, ``trajectories`` (a
prompt), ``eff_rate`` (share of prompts whose rewards differ) and ``avg_rate`` (mean reward).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from measure import describe, in_turn
from transformers import AutoTokenizer
from workloads import IB_SCORE, defaults, rollout_config

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import RewardConfig, SamplerConfig
from nemo_ibtpo.data.loading import load_problems
from nemo_ibtpo.demo.base_model import load_settings, make_base_model
from nemo_ibtpo.megatron.safetensors_io import SafetensorsDirectory
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.rollout.engine import SamplingParams
from nemo_ibtpo.rollout.factory import find_eos_token_ids
from nemo_ibtpo.rollout.vllm_engine import VLLMEngine
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.growth import GrowthTask, grow
from nemo_ibtpo.tree.rollouts import RewardSource, Rollout, RolloutRequest, RolloutSource
from nemo_ibtpo.tree.steps import StepSplitter
from nemo_ibtpo.tree.tree import Tree

ROOT = Path(__file__).resolve().parent.parent


class Barrier:
    """Both sources of a growth, with requests held back until nothing is sampled or scored any more."""

    def __init__(self, source: RolloutSource, rewards: RewardSource) -> None:
        self.source, self.rewards = source, rewards
        self.held: list[RolloutRequest] = []
        self.running = self.unscored = 0

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Hold requests back."""
        self.held += requests

    def poll(self) -> list[Rollout]:
        """Release a round once the one before is over."""
        if not self.running and not self.unscored and self.held:
            self.source.submit(self.held)
            self.running, self.held = len(self.held), []
        rollouts = self.source.poll()
        self.running -= len(rollouts)
        return rollouts

    class Rewards:
        """The rewards, counted by the barrier."""

        def __init__(self, barrier: Barrier) -> None:
            self.barrier = barrier

        def submit(self, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
            """See ``RewardSource``."""
            self.barrier.unscored += 1
            self.barrier.rewards.submit(key, prompt_id, response_tokens)

        def poll(self) -> list[tuple[Hashable, float]]:
            """See ``RewardSource``."""
            scores = self.barrier.rewards.poll()
            self.barrier.unscored -= len(scores)
            return scores


def sampler_config(name: Literal["ib", "independent"], trajectories: int, in_flight: int) -> SamplerConfig:
    """The defaults of a sampler with so many trajectories, in ``independent``'s only round."""
    values = defaults(f"sampler/{name}") | {"max_trees_in_flight": in_flight, "min_new_tokens": 8}
    if name == "independent":
        values["initial_rollouts"] = trajectories
    config = SamplerConfig(**values)
    assert config.trajectories_per_prompt == trajectories
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="tiny", help="says model, problems and lengths")
    parser.add_argument("--prompts", type=int, default=96, help="all of them grow at once")
    parser.add_argument("--batch", type=int, default=32, help="sequences that the engine decodes at once")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        words = [f"model.path={scratch}/model", "data.train.size=8"] if options.tiny else []
        config = compose(options.recipe, words)
        directory = Path(config.model.path)
        if options.tiny:
            settings = load_settings()
            make_base_model(
                directory, type(settings)(**vars(settings) | {"num_solutions": 240}), config.data, RunConsole(1)
            )
            options.prompts = 4
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        problems = load_problems(config.data.train, config.data, tokenizer)[0][: options.prompts]
        rewards = VerifierPool(tokenizer, RewardConfig(num_workers=1, timeout_s=5.0))
        rewards.set_problems(problems)
        engine = VLLMEngine(
            directory,
            rollout_config(kv_cache_gib=config.rollout.vllm.kv_cache_gib, max_batch_size=options.batch),
            sampling=SamplingParams(eos_token_ids=find_eos_token_ids(directory, tokenizer)),
            dtype=torch.float32,
            device=torch.device("cpu"),
            max_model_len=config.data.max_prompt_tokens + config.rollout.max_new_tokens,
            log_path=Path(scratch) / "vllm.log",
        )
        weights = dict(SafetensorsDirectory(directory).items())
        splitter = StepSplitter(tokenizer)
        seeds: dict[str, int] = {}
        grown: dict[str, list[list[Tree]]] = {}
        tokens: dict[str, list[int]] = {}

        def side(name: str, sampler: SamplerConfig, barrier: bool) -> Callable[[], None]:
            def run() -> None:
                engine.update_weights(weights.items())  # milliseconds; empties the prefix cache
                before = engine.stats.sampled_tokens
                seeds[name] = seeds.get(name, 0) + 1
                wait = Barrier(engine, rewards)
                trees = grow(
                    [GrowthTask(problem.problem_id, problem.prompt_tokens) for problem in problems],
                    source=wait if barrier else engine,
                    rewards=Barrier.Rewards(wait) if barrier else rewards,
                    strategy=make_strategy(sampler, IB_SCORE, config.rollout.max_new_tokens),
                    splitter=splitter,
                    max_new_tokens=config.rollout.max_new_tokens,
                    seed=seeds[name],
                    max_in_flight=sampler.max_trees_in_flight,
                )
                grown.setdefault(name, []).append(trees)
                tokens.setdefault(name, []).append(engine.stats.sampled_tokens - before)

            return run

        sides = {
            "independent_8": side("independent_8", sampler_config("independent", 8, options.prompts), False),
            "independent_12": side("independent_12", sampler_config("independent", 12, options.prompts), False),
            "ib_rounds": side("ib_rounds", sampler_config("ib", 12, options.prompts), True),
            "ib_barrier_free": side("ib_barrier_free", sampler_config("ib", 12, options.prompts), False),
        }
        times = dict(zip(sides, in_turn(list(sides.values()), options.repetitions, torch.device("cpu")), strict=True))
        engine.close()
        rewards.close()

    # The first run of each side is not timed.
    sampled = {name: np.array(counts[1:], dtype=float) for name, counts in tokens.items()}
    result: dict[str, object] = {}
    for name, trees_of_runs in grown.items():
        trees = [tree for trees in trees_of_runs[1:] for tree in trees]
        wall = times[name].wall / times["independent_8"].wall
        token = sampled[name] / sampled["independent_8"]
        figures = {
            "wall_ratio": float(np.median(wall)),
            "token_ratio": float(np.median(token)),
            "wall_per_token_ratio": float(np.median(wall / token)),
            "trajectories": float(np.mean([tree.num_trajectories for tree in trees])),
            "eff_rate": float(np.mean([len(set(tree.rewards().tolist())) > 1 for tree in trees])),
            "avg_rate": float(np.mean([tree.rewards().mean() for tree in trees])),
        }
        result[name] = {key: float(f"{value:.4g}") for key, value in figures.items()}
        print(f"{name:16} {times[name]}, {sampled[name].mean():.0f} tokens, {result[name]}")
    result |= {"prompts": options.prompts, "batch": options.batch, "device": describe(torch.device("cpu"))}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
