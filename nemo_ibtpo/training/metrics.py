"""What a training step reports, under the names that go to ``metrics.jsonl``."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from nemo_ibtpo.config.carry_over import policy_version, updates_per_step
from nemo_ibtpo.config.schema import IBScoreConfig, RunConfig
from nemo_ibtpo.losses import mean_metrics
from nemo_ibtpo.methods import Advantages, StepAdvantages
from nemo_ibtpo.tree.carry_over import StepOfTrees
from nemo_ibtpo.tree.ib_score import tree_statistics
from nemo_ibtpo.tree.microbatches import Schedule
from nemo_ibtpo.tree.tree import FloatArray, Tree


def sampling_metrics(trees: Sequence[Tree], config: IBScoreConfig) -> dict[str, float]:
    """Of a step's trees: rewards, IB-Score, its covariance, tokens, and the shape of the trees."""
    steps = [node for tree in trees for node in tree.nodes[1:]]
    leaves = [(leaf, tree) for tree in trees for leaf in tree.leaves()]
    trajectories = sum(leaf.draws for leaf, _ in leaves)
    cut_short = sum(leaf.draws for leaf, _ in leaves if leaf.finish_reason == "length")
    branches = [(tree, node) for tree in trees for node in _branches(tree)]
    metrics = {"train/branches_per_tree": len(branches) / len(trees)}
    if branches:
        depth_tokens = [tree.depth_tokens(node) for tree, node in branches]
        depth_steps = [len(tree.path(node)) - 1 for tree, node in branches]
        metrics |= {
            "train/branch_depth_tokens": float(np.mean(depth_tokens)),
            "train/branch_depth_steps": float(np.mean(depth_steps)),
        }
    return (
        metrics
        | {f"train/{name}": value for name, value in tree_statistics(trees, config).means().items()}
        | {
            "train/steps_per_trajectory": sum(leaf.draws * (len(tree.path(leaf.index)) - 1) for leaf, tree in leaves)
            / trajectories,
            "train/tokens_per_step": sum(len(node.tokens) for node in steps) / len(steps),
            "train/truncated_rate": cut_short / trajectories,
        }
    )


def _branches(tree: Tree) -> list[int]:
    """Nodes at which growth went on after the round that made them, once for each such round."""
    nodes = tree.nodes
    rounds = {(node.parent, node.round) for node in nodes[1:] if node.round > nodes[node.parent].round}
    return [parent for parent, _ in sorted(rounds)]


def training_by_source(trees: Sequence[Tree], sources: Mapping[str, str]) -> dict[str, float]:
    """Prompts and mean reward of each data set of a mixture; ``sources`` has its name by problem id."""
    rates: dict[str, list[float]] = {}
    for tree in trees:
        if (name := sources.get(tree.prompt_id)) is not None:
            rates.setdefault(name, []).append(float(tree.rewards().mean()))
    return {f"train/source_{name}_prompts": float(len(own)) for name, own in sorted(rates.items())} | {
        f"train/source_{name}_avg_rate": float(np.mean(own)) for name, own in sorted(rates.items())
    }


def validation_by_source(scores: Mapping[str, float], sources: Mapping[str, str]) -> dict[str, float]:
    """Accuracy on each data set of a mixture, from the mean reward of each problem."""
    by_source: dict[str, list[float]] = {}
    for problem_id, score in scores.items():
        if (name := sources.get(problem_id)) is not None:
            by_source.setdefault(name, []).append(score)
    return {f"val/source_{name}_accuracy": float(np.mean(own)) for name, own in sorted(by_source.items())}


def advantage_metrics(trees: Sequence[Tree], advantages: Sequence[Advantages | None]) -> dict[str, float]:
    """Groups left out, and the spread of advantages over steps, or over trajectories if it is these that have one."""
    metrics = {"train/dropped_groups": float(sum(advantage is None for advantage in advantages))}
    parts: dict[str, list[FloatArray]] = {"total": [], "global_part": [], "local_part": []}
    for tree, advantage in zip(trees, advantages, strict=True):
        if isinstance(advantage, StepAdvantages):
            for part, values in parts.items():
                values.append(getattr(advantage, part)[1:])
        elif advantage is not None:
            leaves = list(tree.leaves())
            at_leaf = advantage.at_leaf[[leaf.index for leaf in leaves]]
            parts["total"].append(np.repeat(at_leaf, [leaf.draws for leaf in leaves]))
    for part, values in parts.items():
        if values:
            metrics |= {f"advantage/{part}_{name}": value for name, value in _spread(np.concatenate(values)).items()}
    return metrics


def _spread(values: FloatArray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def engine_metrics(prefill_tokens: int, cached_prefix_tokens: int) -> dict[str, float]:
    """Of all engines in a step: how much of the prefixes was not computed again."""
    prefix = prefill_tokens + cached_prefix_tokens
    return {"perf/prefix_hit_rate": cached_prefix_tokens / prefix} if prefix else {}


def carry_over_metrics(closed: StepOfTrees, waited_for: int, config: RunConfig, step: int) -> dict[str, float]:
    """Of the trees that a step trains and of those that it leaves, with the tokens that engines drew in vain.

    Args:
        closed: of all ranks.
        waited_for: trees that would have been too old in the next step.
        config: of the run.
        step: the training step.
    """
    versions = np.concatenate([node.versions for tree in closed.closed.values() for node in tree.nodes[1:]])
    lag = policy_version(config, step) - versions
    possible = range(0, config.sampler.max_policy_lag + 1, updates_per_step(config))
    begun = [tree for tree in closed.carried.values() if tree.tokens]
    return {
        **{f"carry_over/lag_{steps}_share": float((lag == steps).mean()) for steps in possible},
        "carry_over/lag_mean": float(lag.mean()),
        "carry_over/trees": float(len(begun)),
        "carry_over/tokens": float(sum(tree.tokens for tree in begun)),
        "carry_over/trees_waited_for": float(waited_for),
        "perf/dropped_tokens": float(closed.dropped),
    }


def peak_memory() -> dict[str, float]:
    """Of this process: peak of host memory since it began, and of a GPU's memory since the last call."""
    peaks = {"perf/host_memory_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # from KiB
    if torch.cuda.is_initialized():
        peaks["perf/gpu_memory_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    return peaks


def update_metrics(sums: Mapping[str, float], plan: Schedule) -> dict[str, float]:
    """Of one optimizer step: what :meth:`MegatronActor.train_step` returned, as means."""
    alone = {name: sums[name] for name in ("loss", "grad_norm", "lr")}
    weighted = {name: value for name, value in sums.items() if name not in alone}
    return {f"train/{name}": value for name, value in (alone | mean_metrics(weighted)).items()} | {
        "perf/microbatches_per_rank": float(len(plan.ranks[0])),
        "perf/microbatch_fill": plan.fill,
        "perf/rank_balance": plan.balance,
    }


def mean_over_updates(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the optimizer steps of a training step that took place."""
    names = dict.fromkeys(name for one in metrics for name in one)
    return {name: float(np.mean([one[name] for one in metrics if name in one])) for name in names}
