"""Growing trees on vLLM against sampling independent responses: wall time, tokens, worth of the trajectories.

Sides in turn in one run, on the same engine, model, prompts and limits, each with an empty prefix cache:

- ``independent_8``, ``independent_12``: so many independent responses a prompt;
- ``ib_rounds``: 12 trajectories a prompt grown by the IB-Score, with a barrier: a round begins when the round before
  is sampled and scored for all prompts;
- ``ib_barrier_free``: the same without one, as training does it;
- ``ib_window_4``: with up to four sequences of a tree in flight (``sampler.max_sequences_per_tree``);
- ``ib_replayed``: the requests of ``ib_barrier_free``, all of them handed over at once. Nothing waits for a branch
  point or a verifier here: what this costs is vLLM's price for requests of such lengths, and only the rest growth's.

Model, problems, lengths and real verifier processes are a recipe's, or ``--long``: a random model of 5 million
parameters, or with ``--card`` of the shape of a recipe's model; prompts of 64 tokens, responses of half to one and a
half times as many tokens in steps of 16, rewards by the parity of their tokens. There prefixes are many blocks of the
cache long, as in training on reasoning; the demo's fill none.

    make demo                                          # makes the model
    python benchmarks/sampling.py
    python benchmarks/sampling.py --long 128 --prompts 24 --batch 12
    python benchmarks/sampling.py --recipe smollm2-135m --prompts 16 --batch 8
    python benchmarks/sampling.py --card Qwen3-1.7B-Base --long 512 --prompts 16 --batch 256    # on a GPU, in bf16

Ratios are to ``independent_8``, medians over the repetitions. The last line is JSON: for each side ``wall_ratio``,
``token_ratio``, ``wall_per_token_ratio``, ``cpu_per_token_ratio`` (CPU seconds of vLLM's process, which other work on
the machine moves less), ``prefill_per_token`` (prefix tokens computed for a token sampled), ``occupancy`` (share of
the batch's places that were taken), ``growth_cpu_share`` (of a core, by the process that grows the trees),
``trajectories`` (a prompt), ``eff_rate`` (share of prompts whose rewards differ) and ``avg_rate`` (mean reward).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from measure import FloatArray, describe, in_turn
from transformers import AutoConfig, AutoTokenizer
from workloads import IB_SCORE, SMALL_SHAPE, defaults, model_card, rollout_config, write_random_model

from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import SamplerConfig
from nemo_ibtpo.data.loading import load_problems
from nemo_ibtpo.experiments.base_models.imitation import load_settings, make_base_model
from nemo_ibtpo.experiments.base_models.tokenizer import make_tokenizer
from nemo_ibtpo.reporting.progress import RunConsole
from nemo_ibtpo.rewards.pool import VerifierPool
from nemo_ibtpo.rollout.engine import SamplingParams
from nemo_ibtpo.rollout.factory import find_eos_token_ids
from nemo_ibtpo.rollout.vllm.engine import VLLMEngine
from nemo_ibtpo.tree.branching import make_strategy
from nemo_ibtpo.tree.growth import GrowthTask, grow
from nemo_ibtpo.tree.rollouts import RewardSource, Rollout, RolloutRequest, RolloutSource
from nemo_ibtpo.tree.steps import FixedWidthSplitter, Splitter, StepSplitter
from nemo_ibtpo.tree.tree import Tree


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


class Recorder:
    """A source that keeps the requests it hands on and may cut responses short, each where its seed says.

    Responses of one length would start and end a batch at a time, which costs less than a start now and then.
    """

    def __init__(self, source: RolloutSource, batch: int, cut_from: int | None, prompt_tokens: int) -> None:
        self.source, self.batch, self.cut_from, self.prompt_tokens = source, batch, cut_from, prompt_tokens
        self.requests: list[RolloutRequest] = []
        self.unanswered = 0
        self.taken = 0.0  # places of the batch, times seconds
        self.first = self.last = time.monotonic()

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Hand requests on."""
        requests = [self._cut(request) for request in requests]
        self.requests += requests
        self._look()
        self.source.submit(requests)
        self.unanswered += len(requests)

    def poll(self) -> list[Rollout]:
        """See ``RolloutSource``."""
        rollouts = self.source.poll()
        self._look()
        self.unanswered -= len(rollouts)
        return rollouts

    def progress(self, at_least: Mapping[Hashable, int]) -> Mapping[Hashable, int]:
        """See ``RolloutSource``."""
        return self.source.progress(at_least)

    @property
    def occupancy(self) -> float:
        """Share of the batch's places that were taken, over the whole time."""
        return self.taken / (self.last - self.first) / self.batch

    def _look(self) -> None:
        now = time.monotonic()
        self.taken += min(self.unanswered, self.batch) * (now - self.last)
        self.last = now

    def _cut(self, request: RolloutRequest) -> RolloutRequest:
        """With ``cut_from``, the whole response's length is drawn between that, or what is there, and the limit."""
        if self.cut_from is None:
            return request
        grown = len(request.prefix) - self.prompt_tokens
        shortest = max(self.cut_from, grown + 1)
        length = np.random.default_rng(request.seed).integers(shortest, grown + request.max_new_tokens + 1)
        return replace(request, max_new_tokens=int(length) - grown)


class Parity:
    """Rewards of responses that mean nothing."""

    def __init__(self) -> None:
        self.scores: list[tuple[Hashable, float]] = []

    def submit(self, key: Hashable, prompt_id: str, response_tokens: tuple[int, ...]) -> None:
        """See ``RewardSource``."""
        self.scores.append((key, float(sum(response_tokens) % 2)))

    def poll(self) -> list[tuple[Hashable, float]]:
        """See ``RewardSource``."""
        scores, self.scores = self.scores, []
        return scores


@dataclass
class Workload:
    """What is sampled; ``close`` ends the verifiers."""

    model: Path
    tasks: list[GrowthTask]
    rewards: RewardSource
    splitter: Splitter
    eos_token_ids: tuple[int, ...]
    max_prompt_tokens: int
    max_new_tokens: int
    cut_from: int | None
    kv_cache_gib: float
    min_new_tokens: int
    close: Callable[[], None]


@dataclass(frozen=True)
class Run:
    """One run of a side: its trees and how they were sampled; CPU seconds of vLLM, tokens, prefix tokens computed."""

    trees: list[Tree]
    source: Recorder
    cpu: float
    sampled: int
    prefill: int


def of_recipe(recipe: str, prompts: int, scratch: Path | None) -> Workload:
    """A recipe's model, problems, verifiers and lengths; with ``scratch`` a model that is made there in seconds."""
    words = [f"model.path={scratch}/model", "rollout.max_new_tokens=24"] if scratch else []
    config = compose(recipe, [*words, f"data.train.size={prompts}"])
    directory = Path(config.model.path)
    if scratch:
        settings = replace(load_settings(), num_solutions=240)
        make_base_model(directory, settings, config.data, RunConsole(1))
    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    problems = load_problems(config.data.train, config.data, tokenizer)[0]
    rewards = VerifierPool(tokenizer, replace(compose("tiny", []).reward, num_workers=1))
    rewards.set_problems(problems)
    return Workload(
        directory,
        [GrowthTask(problem.problem_id, problem.prompt_tokens) for problem in problems],
        rewards,
        StepSplitter(tokenizer),
        find_eos_token_ids(directory, tokenizer),
        config.data.max_prompt_tokens,
        config.rollout.max_new_tokens,
        None,
        config.rollout.vllm.kv_cache_gib,
        config.sampler.min_new_tokens,
        rewards.close,
    )


def of_length(response_tokens: int, prompts: int, card: str | None, scratch: Path) -> Workload:
    """A random model and responses of that length on average."""
    shape = SMALL_SHAPE if card is None else AutoConfig.from_pretrained(str(model_card(card)))
    write_random_model(shape, scratch / "model")
    make_tokenizer(["1 + 2"]).save_pretrained(scratch / "model")
    rng = np.random.default_rng(0)
    return Workload(
        scratch / "model",
        [GrowthTask(str(i), tuple(rng.integers(shape.vocab_size, size=64).tolist())) for i in range(prompts)],
        Parity(),
        FixedWidthSplitter(16),
        eos_token_ids=(),
        max_prompt_tokens=64,
        max_new_tokens=response_tokens * 3 // 2,
        cut_from=response_tokens // 2,
        kv_cache_gib=1.0,
        min_new_tokens=16,
        close=lambda: None,
    )


def sampler_config(
    name: Literal["ib", "independent"],
    trajectories: int,
    in_flight: int,
    min_new_tokens: int,
    window: int | None = None,
) -> SamplerConfig:
    """The defaults of a sampler with so many trajectories, in ``independent``'s only round."""
    values = defaults(f"sampler/{name}") | {
        "max_trees_in_flight": in_flight,
        "min_new_tokens": min_new_tokens,
        "max_sequences_per_tree": window,
    }
    if name == "independent":
        values["initial_rollouts"] = trajectories
    config = SamplerConfig(**values)
    assert config.trajectories_per_prompt == trajectories
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="tiny", help="says model, problems and lengths")
    parser.add_argument("--long", type=int, metavar="TOKENS", help="random responses of about this length instead")
    parser.add_argument("--card", help="with --long: random weights in the shape of this card of recipes/models")
    parser.add_argument("--prompts", type=int, default=96, help="all of them grow at once")
    parser.add_argument("--batch", type=int, default=32, help="sequences that the engine decodes at once")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    options = parser.parse_args()
    if options.tiny:
        options.prompts = 4
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        if options.long:
            work = of_length(options.long, options.prompts, options.card, Path(scratch))
        else:
            work = of_recipe(options.recipe, options.prompts, Path(scratch) if options.tiny else None)
        engine = VLLMEngine(
            work.model,
            rollout_config(kv_cache_gib=work.kv_cache_gib, max_batch_size=options.batch),
            sampling=SamplingParams(eos_token_ids=work.eos_token_ids),
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            device=device,
            max_model_len=work.max_prompt_tokens + work.max_new_tokens,
            log_path=Path(scratch) / "vllm.log",
        )
        process = psutil.Process(engine.pid)
        runs: dict[str, list[Run]] = {}

        def recorder(cut_from: int | None) -> Recorder:
            return Recorder(engine, options.batch, cut_from, work.max_prompt_tokens)

        def counters() -> tuple[float, int, int]:
            if engine.restarts:
                raise SystemExit("vLLM had to be restarted, which no side should pay for: run again")
            times = process.cpu_times()
            return times.user + times.system, engine.stats.sampled_tokens, engine.stats.prefill_tokens

        def side(name: str, sample: Callable[[], tuple[list[Tree], Recorder]]) -> Callable[[], None]:
            def run() -> None:
                engine.finish_load()  # of no weights: milliseconds; empties the prefix cache
                before = counters()
                trees, source = sample()
                cpu, sampled, prefill = (now - then for now, then in zip(counters(), before, strict=True))
                runs.setdefault(name, []).append(Run(trees, source, cpu, int(sampled), int(prefill)))

            return run

        def growth(sampler: SamplerConfig, barrier: bool = False) -> Callable[[], tuple[list[Tree], Recorder]]:
            seeds = count(1)

            def sample() -> tuple[list[Tree], Recorder]:
                source = recorder(work.cut_from)
                wait = Barrier(source, work.rewards)
                trees = grow(
                    work.tasks,
                    source=wait if barrier else source,
                    rewards=Barrier.Rewards(wait) if barrier else work.rewards,
                    strategy=make_strategy(sampler, IB_SCORE, work.max_new_tokens),
                    splitter=work.splitter,
                    max_new_tokens=work.max_new_tokens,
                    seed=next(seeds),
                    max_in_flight=sampler.max_trees_in_flight,
                )
                return trees, source

            return sample

        def replay() -> tuple[list[Tree], Recorder]:
            latest = runs["ib_barrier_free"][-1]
            source = recorder(None)
            source.submit(latest.source.requests)
            while source.unanswered:
                source.poll()
            return latest.trees, source  # the same rollouts: requests have seeds

        size = (len(work.tasks), work.min_new_tokens)
        sides = {
            "independent_8": growth(sampler_config("independent", 8, *size)),
            "independent_12": growth(sampler_config("independent", 12, *size)),
            "ib_rounds": growth(sampler_config("ib", 12, *size), barrier=True),
            "ib_barrier_free": growth(sampler_config("ib", 12, *size)),
            "ib_window_4": growth(sampler_config("ib", 12, *size, window=4)),
            "ib_replayed": replay,
        }
        functions = [side(*named) for named in sides.items()]
        times = dict(zip(sides, in_turn(functions, options.repetitions, device), strict=True))
        engine.close()
        work.close()

    def per_run(name: str, of: Callable[[Run], float]) -> FloatArray:
        return np.array([of(run) for run in runs[name][1:]])  # the first one is not timed

    base_sampled, base_cpu = (per_run("independent_8", of) for of in (lambda run: run.sampled, lambda run: run.cpu))
    result: dict[str, object] = {}
    for name in sides:
        trees = [tree for run in runs[name][1:] for tree in run.trees]
        sampled = per_run(name, lambda run: run.sampled)
        wall = times[name].wall / times["independent_8"].wall
        cpu = per_run(name, lambda run: run.cpu) / base_cpu
        token = sampled / base_sampled
        figures = {
            "wall_ratio": float(np.median(wall)),
            "token_ratio": float(np.median(token)),
            "wall_per_token_ratio": float(np.median(wall / token)),
            "cpu_per_token_ratio": float(np.median(cpu / token)),
            "prefill_per_token": float(np.median(per_run(name, lambda run: run.prefill / run.sampled))),
            "occupancy": float(np.median(per_run(name, lambda run: run.source.occupancy))),
            "growth_cpu_share": float(np.median(times[name].cpu / times[name].wall)),
            "trajectories": float(np.mean([tree.num_trajectories for tree in trees])),
            "eff_rate": float(np.mean([len(set(tree.rewards().tolist())) > 1 for tree in trees])),
            "avg_rate": float(np.mean([tree.rewards().mean() for tree in trees])),
        }
        figures["wall_s"] = float(np.median(times[name].wall))
        result[name] = {key: float(f"{value:.4g}") for key, value in figures.items()}
        print(f"{name:16} {times[name]}, {sampled.mean():.0f} tokens, {result[name]}", flush=True)
    result |= {"prompts": options.prompts, "batch": options.batch, "device": describe(device)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
