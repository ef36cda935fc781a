"""What a training step reports, under the names that go to ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

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
    """Spread of the advantages over steps (``ibtpo``: its two parts) or trajectories (``grpo``)."""
    kept = [advantage for advantage in advantages if advantage is not None]
    metrics = {"train/dropped_groups": float(len(advantages) - len(kept))}
    by_step = [advantage for advantage in kept if isinstance(advantage, StepAdvantages)]
    if by_step:
        for part in ("total", "global_part", "local_part"):
            values = np.concatenate([getattr(advantage, part)[1:] for advantage in by_step])
            metrics[f"advantage/{part}_mean"] = float(values.mean())
            metrics[f"advantage/{part}_std"] = float(values.std())
    return metrics


def mismatch_sums(old_logprobs: Tensor, behaviour_logprobs: Tensor) -> dict[str, Tensor]:
    """Sums behind the mismatch of engine and actor on the same tokens (names and formulas of NeMo RL).

    ``token_mult_prob_error`` is the mean of exp(\\|difference\\|), 1 when they agree; ``gen_kl_error`` the k3
    estimate of KL(engine || actor) in nats.
    """
    difference = (old_logprobs - behaviour_logprobs).double()
    return {
        "mismatch/tokens": torch.tensor(float(len(difference)), device=difference.device),
        "mismatch/token_mult_prob_error": difference.abs().exp().sum(),
        "mismatch/gen_kl_error": (difference.exp() - difference - 1).sum(),
    }


def update_metrics(sums: Mapping[str, float], plan: Schedule) -> dict[str, float]:
    """Of one optimizer step: what :meth:`MegatronActor.train_step` returned, as means."""
    alone = {name: sums[name] for name in ("loss", "grad_norm", "lr")}
    mismatch = {name: value for name, value in sums.items() if name.startswith("mismatch/")}
    tokens = mismatch.pop("mismatch/tokens")
    weighted = {name: value for name, value in sums.items() if name not in alone and "/" not in name}
    return (
        {f"train/{name}": value for name, value in (alone | mean_metrics(weighted)).items()}
        | {name: value / tokens for name, value in mismatch.items()}
        | {
            "perf/microbatches_per_rank": float(len(plan.ranks[0])),
            "perf/microbatch_fill": plan.fill,
            "perf/rank_balance": plan.balance,
        }
    )


def mean_over_updates(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the optimizer steps of a training step that took place."""
    names = dict.fromkeys(name for one in metrics for name in one)
    return {name: float(np.mean([one[name] for one in metrics if name in one])) for name in names}
