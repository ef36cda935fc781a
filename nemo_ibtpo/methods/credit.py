"""From advantages to what each unique token weighs in the loss.

Training a tree once equals training its G trajectories as separate sequences, exactly, because a token that
trajectories share has the same log-probability in all of them. Let u_i be what each token of trajectory i
weighs: 1 under ``token_mean``, ``1 / (G * |path_i|)`` under ``sequence_mean`` (GRPO's). The clipped surrogate
``-min(r A, clip(r) A)`` is ``-A min(r, 1 + eps_high)`` for A >= 0 and ``-A max(r, 1 - eps_low)`` for A < 0, so
the loss of all trajectories through a token is known from three sums over them, a leaf counted once per draw::

    weight   = sum_i u_i
    positive = sum_i u_i * max(A_i, 0)
    negative = sum_i u_i * max(-A_i, 0)

They are constant within a step. The sum of ``weight`` over the unique tokens is at the same time what the loss is
divided by: the tokens of all trajectories under ``token_mean``, 1 per tree under ``sequence_mean``. A tree that is
left out has weight 0 throughout.

``token_weight: unique`` is another objective, of SPO and for ablations: every unique token weighs 1, whatever the
number n of trajectories through it, so all three sums are divided by n.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from nemo_ibtpo.methods.advantages import Advantages, StepAdvantages
from nemo_ibtpo.tree.packing import Credit
from nemo_ibtpo.tree.tree import Tree

Normalization = Literal["token_mean", "sequence_mean"]
TokenWeight = Literal["trajectories", "unique"]


def credit_nodes(
    tree: Tree, advantages: Advantages | None, normalization: Normalization, token_weight: TokenWeight
) -> Credit:
    """Sum up what the trajectories through each node contribute.

    Args:
        tree: the trajectories of one prompt.
        advantages: their advantages; None leaves the tree out.
        normalization: ``token_mean`` or ``sequence_mean``.
        token_weight: ``trajectories``, or ``unique`` with ``token_mean``.

    Raises:
        ValueError: ``unique`` with another normalization than ``token_mean``.
    """
    if token_weight == "unique" and normalization != "token_mean":
        raise ValueError(f"token_weight=unique goes with token_mean, not with {normalization}")
    if advantages is None:
        zeros_N = np.zeros(len(tree.nodes))
        return Credit(zeros_N, zeros_N, zeros_N, 0.0)
    unit_N = np.zeros(len(tree.nodes))  # u_i, at the leaf of trajectory i
    group = tree.num_trajectories
    for leaf in tree.leaves():
        unit_N[leaf.index] = 1.0 if normalization == "token_mean" else 1 / (group * tree.depth_tokens(leaf.index))
    weight_N = tree.sum_over_leaves(unit_N)
    if isinstance(advantages, StepAdvantages):
        positive_N = weight_N * np.maximum(advantages.total, 0)
        negative_N = weight_N * np.maximum(-advantages.total, 0)
    else:
        positive_N = tree.sum_over_leaves(unit_N * np.maximum(advantages.at_leaf, 0))
        negative_N = tree.sum_over_leaves(unit_N * np.maximum(-advantages.at_leaf, 0))
    if token_weight == "unique":
        n_paths_N = tree.n_paths()
        weight_N, positive_N, negative_N = weight_N / n_paths_N, positive_N / n_paths_N, negative_N / n_paths_N
    denominator = sum(weight_N[node.index] * len(node.tokens) for node in tree.nodes[1:])
    return Credit(weight_N, positive_N, negative_N, float(denominator))
