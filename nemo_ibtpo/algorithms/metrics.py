"""What a training step reports, under the names that go to ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nemo_ibtpo.algorithms.advantages import Advantages, StepAdvantages
from nemo_ibtpo.algorithms.losses import mean_metrics
from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.tree.ib_score import tree_statistics
from nemo_ibtpo.tree.microbatches import Schedule
from nemo_ibtpo.tree.tree import Tree


def sampling_metrics(trees: Sequence[Tree], config: IBScoreConfig) -> dict[str, float]:
    """Of a step's trees: rewards, IB-Score, its covariance, tokens, and the shape of the trees."""
    steps = [node for tree in trees for node in tree.nodes[1:]]
    leaves = [(leaf, tree) for tree in trees for leaf in tree.leaves()]
    trajectories = sum(leaf.draws for leaf, _ in leaves)
    cut_short = sum(leaf.draws for leaf, _ in leaves if leaf.finish_reason == "length")
    return {f"train/{name}": value for name, value in tree_statistics(trees, config).means().items()} | {
        "train/steps_per_trajectory": sum(leaf.draws * (len(tree.path(leaf.index)) - 1) for leaf, tree in leaves)
        / trajectories,
        "train/tokens_per_step": sum(len(node.tokens) for node in steps) / len(steps),
        "train/truncated_rate": cut_short / trajectories,
    }


def advantage_metrics(advantages: Sequence[Advantages | None]) -> dict[str, float]:
    """Groups left out, and the spread of advantages over steps, in total and by part."""
    kept = [advantage for advantage in advantages if advantage is not None]
    metrics = {"train/dropped_groups": float(len(advantages) - len(kept))}
    by_step = [advantage for advantage in kept if isinstance(advantage, StepAdvantages)]
    if by_step:
        for part in ("total", "global_part", "local_part"):
            values = np.concatenate([getattr(advantage, part)[1:] for advantage in by_step])
            metrics[f"advantage/{part}_mean"] = float(values.mean())
            metrics[f"advantage/{part}_std"] = float(values.std())
    return metrics


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
