"""Probe trees: what every policy is measured with alike, whatever sampler it is trained on.

The trees of a training step are of the arm's own shape: chains have no node but the root that was drawn from twice,
and an IB tree branches where its score is high. So that IB-Score and Cov(eta1, eta2) of two policies may be compared,
both grow the same kind of tree on the same problems from the same seeds: some trajectories, then continuations of
steps that are chosen at random, which no score has a say in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nemo_ibtpo.config.schema import IBScoreConfig, ProbeConfig, SamplerConfig
from nemo_ibtpo.tree.branching import BranchingStrategy, make_strategy
from nemo_ibtpo.tree.ib_score import tree_statistics
from nemo_ibtpo.tree.tree import Tree

_REPORTED = ("eff_rate", "avg_rate", "ib_score", "cov")


def probe_strategy(probe: ProbeConfig, sampler: SamplerConfig, max_new_tokens: int) -> BranchingStrategy:
    """How probe trees grow.

    Args:
        probe: their shape.
        sampler: of training, for the room that a step needs to be continued.
        max_new_tokens: most response tokens of a trajectory.
    """
    shape = replace(
        sampler,
        name="random",
        initial_rollouts=probe.initial_rollouts,
        rounds=2,
        branch_points=probe.branch_points,
        rollouts_per_branch=probe.rollouts_per_branch,
        segment_tokens=None,
        max_sequences_per_tree=None,
    )
    return make_strategy(shape, probe.ib_score, max_new_tokens)


def probe_metrics(trees: Sequence[Tree], config: IBScoreConfig) -> dict[str, float]:
    """Of the probe trees of all ranks, under the names that go to ``metrics.jsonl``.

    ``probe/entropy`` is the mean surprisal of the tokens that were drawn, in nats: the policy's entropy at the
    prefixes of the trees, up to sampling noise.
    """
    means = tree_statistics(trees, config).means()
    drawn = [(node.draws, node.logprobs) for tree in trees for node in tree.nodes[1:]]
    surprisal = -sum(draws * sum(logprobs) for draws, logprobs in drawn)
    tokens = sum(draws * len(logprobs) for draws, logprobs in drawn)
    return {f"probe/{name}": means[name] for name in _REPORTED} | {"probe/entropy": surprisal / tokens}
