"""What the trees themselves cost: bookkeeping of one step as a share of the step.

512 trees of 12 trajectories with 2,000 response tokens each are grown by the real IB strategy from random tokens, and
everything that one process then does in Python for a step is timed: scoring the candidates of every round, the
exchange of trees with other ranks, the step's metrics, advantages and credit, the schedule of micro-batches, and the
packing of its own share of them. Here one process does all of it. In a run with an engine on every rank a rank scores
and writes only the trees that its own engine samples, which ``overhead_share_of_a_rank`` counts; scoring is hidden
behind sampling besides.

The step it is compared with is estimated from NeMo RL's published 92.8 s for a GRPO step of an 8B model on 16 H100
with 2,048 trajectories of 1,019 tokens, in proportion to the tokens, of which only the unique ones are counted.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --response-tokens 16000 --step-tokens 40  # long responses; 512 prompts take 10 GiB

The last line is JSON: ``overhead_share``, the seconds of each part, the estimate, the bytes in which ranks exchange
trees, as arrays and as the lists that JSON holds, and the memory that trees take in a process.
"""

from __future__ import annotations

import argparse
import pickle
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from measure import describe, report
from workloads import IB_SCORE, LOSS, METHOD, SHAPES, defaults, grow_tree

from nemo_ibtpo.collectives import collector_paused
from nemo_ibtpo.methods import make_method
from nemo_ibtpo.methods.credit import credit_nodes
from nemo_ibtpo.training.metrics import advantage_metrics, sampling_metrics
from nemo_ibtpo.tree.branching import BranchingStrategy, BranchPoint
from nemo_ibtpo.tree.microbatches import pack_microbatches, schedule
from nemo_ibtpo.tree.packing import layout
from nemo_ibtpo.tree.tree import Tree

DATA_PARALLEL_RANKS = 16
SPREAD = ("scoring", "writing trees")  # over these ranks
# Published: NeMo RL, GRPO, 8B model, 16 H100.
PUBLISHED_STEP_S, PUBLISHED_TOKENS = 92.8, 2048 * 1019


class Stopwatch:
    """Seconds in which this process was running, by part."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        started = time.process_time()
        yield
        self.seconds[name] += time.process_time() - started


@dataclass(frozen=True)
class Timed:
    """A strategy whose decisions are timed."""

    strategy: BranchingStrategy
    stopwatch: Stopwatch

    def next_round(self, tree: Tree, round: int, rng: np.random.Generator) -> list[BranchPoint]:
        """See ``BranchingStrategy``."""
        with self.stopwatch.part("scoring"):
            return self.strategy.next_round(tree, round, rng)


def bookkeeping(trees: list[Tree], max_tokens: int, stopwatch: Stopwatch) -> int:
    """What ``train`` does with the trees of a step; the bytes in which ranks exchange them."""
    exchanged = 0
    for tree in trees:
        with stopwatch.part("writing trees"):
            written = pickle.dumps(tree)
        exchanged += len(written)
        with stopwatch.part("reading trees"), collector_paused():
            pickle.loads(written)
    with stopwatch.part("metrics"):
        sampling_metrics(trees, IB_SCORE)
    with stopwatch.part("advantages"):
        advantages = make_method(METHOD).of_update(trees, IB_SCORE)
        advantage_metrics(trees, advantages)
    with stopwatch.part("credit"):
        credits = [
            credit_nodes(tree, advantage, LOSS.normalization, LOSS.token_weight)
            for tree, advantage in zip(trees, advantages, strict=True)
        ]
    with stopwatch.part("schedule"):
        plan = schedule(
            map(layout, trees), max_tokens=max_tokens, num_ranks=DATA_PARALLEL_RANKS, attention_weight=1e-5
        )
    with stopwatch.part("packing"):  # of one rank
        pack_microbatches(plan.ranks[0], trees, credits)
    return exchanged


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--response-tokens", type=int, default=2000, help="of a trajectory, on average")
    parser.add_argument("--step-tokens", type=int, default=50, help="of a reasoning step, on average")
    parser.add_argument("--tiny", action="store_true", help="seconds on any machine; its figures mean nothing")
    options = parser.parse_args()
    prompts = 4 if options.tiny else options.prompts

    stopwatch, rng = Stopwatch(), np.random.default_rng(0)
    shape = replace(SHAPES["paper"], path_tokens=options.response_tokens, step_tokens=options.step_tokens)
    strategy, before = Timed(shape.strategy("ib"), stopwatch), resident_bytes()
    trees = [grow_tree(shape, strategy, rng, prompt_id=str(i), vocab_size=150_000) for i in range(prompts)]
    memory = resident_bytes() - before
    max_tokens = max(defaults("actor")["max_tokens_per_microbatch"], 2 * options.response_tokens)
    exchanged = bookkeeping(trees, max_tokens, stopwatch)
    lists = len(pickle.dumps([tree.to_dict() for tree in trees[:4]])) * prompts // len(trees[:4])

    unique = sum(tree.unique_tokens for tree in trees)
    trajectories = sum(tree.num_trajectories for tree in trees)
    steps = sum(len(tree.nodes) - 1 for tree in trees)
    print(f"{prompts} trees, {trajectories} trajectories, {steps} steps, {unique} unique tokens")
    estimate = PUBLISHED_STEP_S * unique / PUBLISHED_TOKENS
    print(f"step: {PUBLISHED_STEP_S} s * {unique} / {PUBLISHED_TOKENS} tokens = {estimate:.1f} s")
    print(f"trees take {memory / 2**20:,.0f} MiB of memory; exchanged in {exchanged / 2**20:,.0f} MiB", end=" ")
    print(f"({exchanged / unique:.1f} bytes a token), {lists / 2**20:,.0f} MiB as lists")
    for name, seconds in stopwatch.seconds.items():
        print(f"  {name:18} {seconds:7.3f} s  {seconds / estimate:7.3%}")
    overhead = sum(stopwatch.seconds.values())
    print(f"  {'together':18} {overhead:7.3f} s  {overhead / estimate:7.3%}")
    spread = sum(stopwatch.seconds[name] for name in SPREAD)
    of_a_rank = overhead - spread + spread / DATA_PARALLEL_RANKS
    print(f"  {'one of 16 ranks':18} {of_a_rank:7.3f} s  {of_a_rank / estimate:7.3%}")
    report(
        overhead_share=overhead / estimate,
        overhead_share_of_a_rank=of_a_rank / estimate,
        overhead_s=overhead,
        step_s_estimated=estimate,
        **{f"{name.replace(' ', '_')}_s": seconds for name, seconds in stopwatch.seconds.items()},
        unique_tokens=unique,
        exchanged_bytes=exchanged,
        exchanged_bytes_as_lists=lists,
        memory_of_trees_bytes=memory,
        device=describe(torch.device("cpu")),
    )


if __name__ == "__main__":
    main()
