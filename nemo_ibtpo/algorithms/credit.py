"""From advantages to what each unique token weighs in the loss.

Training a tree once equals training its G trajectories as separate sequences, exactly, because a token that
trajectories share has the same log-probability in all of them. Let u_i be what each token of trajectory i
weighs: 1 under ``token_mean``, ``1 / (G * |path_i|)`` under ``sequence_mean`` (GRPO's). The clipped surrogate
``-min(r A, clip(r) A)`` is ``-A min(r, 1 + eps_high)`` for A >= 0 and ``-A max(r, 1 - eps_low)`` for A < 0, so
the loss of all trajectories through a token is known from three sums over them, a leaf counted once per draw::

    weight   = sum_i u_i
    positive = sum_i u_i * max(A_i, 0)
    negative = sum_i u_i * max(-A_i, 0)

They are constant within a step, and are computed once for all trees of an optimizer step; micro-batches only
gather them. The sum of ``weight`` over the unique tokens is at the same time what the loss is divided by: the
tokens of all trajectories under ``token_mean``, 1 per tree under ``sequence_mean``. A tree that is left out
has weight 0 throughout.

``token_weight: unique`` is another objective, of SPO and for ablations: every unique token weighs 1, whatever the
number n of trajectories through it, so all three sums are divided by n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nemo_ibtpo.algorithms.advantages import Advantages, StepAdvantages
from nemo_ibtpo.tree.packing import FloatArray as Float32Array
from nemo_ibtpo.tree.packing import PackedTrees
from nemo_ibtpo.tree.tree import FloatArray, Tree

Normalization = Literal["token_mean", "sequence_mean"]
TokenWeight = Literal["trajectories", "unique"]


@dataclass(frozen=True, slots=True)
class NodeCredit:
    """The three sums of every node of one tree; [N] each, of which the root's entries are not used.

    Attributes:
        weight, positive, negative: see the module.
        denominator: the tree's share of what the step's loss is divided by; 0 if the tree is left out.
    """

    weight: FloatArray
    positive: FloatArray
    negative: FloatArray
    denominator: float


@dataclass(frozen=True, slots=True)
class TokenTargets:
    """The three sums of every token; [T] each, 0 for prompt tokens."""

    weight: Float32Array
    positive: Float32Array
    negative: Float32Array


def credit_nodes(
    tree: Tree, advantages: Advantages | None, normalization: Normalization, token_weight: TokenWeight
) -> NodeCredit:
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
        return NodeCredit(zeros_N, zeros_N, zeros_N, 0.0)
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
    return NodeCredit(weight_N, positive_N, negative_N, float(denominator))


def token_targets(credits: Sequence[NodeCredit], packed: PackedTrees) -> TokenTargets:
    """Spread the credit of packed trees over their tokens.

    Args:
        credits: one per tree, in the order in which the trees were packed.
        packed: the trees, whole.

    Raises:
        ValueError: the credits do not belong to these trees.
    """
    num_nodes = sum(len(credit.weight) for credit in credits)
    if len(credits) != packed.num_trees or num_nodes != packed.num_nodes:
        raise ValueError(
            f"credit for {len(credits)} trees with {num_nodes} nodes does not fit {packed.num_trees} packed "
            f"trees with {packed.num_nodes}"
        )

    def spread(per_node: list[FloatArray]) -> Float32Array:
        return np.where(packed.loss_mask, np.concatenate(per_node)[packed.node], 0).astype(np.float32)

    return TokenTargets(
        weight=spread([credit.weight for credit in credits]),
        positive=spread([credit.positive for credit in credits]),
        negative=spread([credit.negative for credit in credits]),
    )
