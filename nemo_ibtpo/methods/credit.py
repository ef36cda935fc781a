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
left out has weight 0 throughout; its share of the denominator is known all the same (:func:`loss_denominator`).

Two other token weights, both with ``token_mean``, are other objectives:

``unique``
    every sampled edge of the tree is trained as often as it was drawn, whatever the number n of trajectories through
    it: all three sums are multiplied by draws / n (SPO). On chains draws = n, and it is ``trajectories``.
``hierarchical``
    u_i = G * product over the steps of the path of draws / B, over the draws of the leaf; B is the draws at the
    step's parent. Every node then gives the weight that it has to its draws in equal parts, however often growth came
    back below them, so that sum grad log pi at a node has mean 0 if the number of draws there does not depend on what
    was drawn. Adaptive growth does let it depend on rewards, so a bias remains (docs/algorithm.md, section 6). On
    chains draws / B telescopes to n / G, and it is ``trajectories``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from nemo_ibtpo.methods.advantages import Advantages, StepAdvantages
from nemo_ibtpo.tree.ib_score import draws_at
from nemo_ibtpo.tree.packing import Credit
from nemo_ibtpo.tree.tree import FloatArray, Tree

Normalization = Literal["token_mean", "sequence_mean"]
TokenWeight = Literal["trajectories", "unique", "hierarchical"]


def credit_nodes(
    tree: Tree, advantages: Advantages | None, normalization: Normalization, token_weight: TokenWeight
) -> Credit:
    """Sum up what the trajectories through each node contribute.

    Args:
        tree: the trajectories of one prompt.
        advantages: their advantages; None leaves the tree out.
        normalization: ``token_mean`` or ``sequence_mean``.
        token_weight: ``trajectories``, or ``unique`` or ``hierarchical`` with ``token_mean``.

    Raises:
        ValueError: another token weight than ``trajectories`` with another normalization than ``token_mean``.
    """
    if token_weight != "trajectories" and normalization != "token_mean":
        raise ValueError(f"token_weight={token_weight} goes with token_mean, not with {normalization}")
    unit_N = np.zeros(len(tree.nodes))  # u_i, at the leaf of trajectory i
    group = tree.num_trajectories
    for leaf in tree.leaves():
        unit_N[leaf.index] = 1.0 if normalization == "token_mean" else 1 / (group * tree.depth_tokens(leaf.index))
    if token_weight == "hierarchical":
        unit_N = group * _shares(tree) / np.maximum([node.draws for node in tree.nodes], 1)
    weight_N = tree.sum_over_leaves(unit_N)
    if advantages is None:
        positive_N = negative_N = np.zeros(len(tree.nodes))
    elif isinstance(advantages, StepAdvantages):
        positive_N = weight_N * np.maximum(advantages.total, 0)
        negative_N = weight_N * np.maximum(-advantages.total, 0)
    else:
        positive_N = tree.sum_over_leaves(unit_N * np.maximum(advantages.at_leaf, 0))
        negative_N = tree.sum_over_leaves(unit_N * np.maximum(-advantages.at_leaf, 0))
    if token_weight == "unique":
        part_N = np.array([node.draws for node in tree.nodes]) / tree.n_paths()
        weight_N, positive_N, negative_N = weight_N * part_N, positive_N * part_N, negative_N * part_N
    denominator = sum(weight_N[node.index] * len(node.tokens) for node in tree.nodes[1:])
    return Credit(weight_N if advantages is not None else positive_N, positive_N, negative_N, float(denominator))


def loss_denominator(
    trees: Sequence[Tree],
    advantages: Sequence[Advantages | None],
    credits: Sequence[Credit],
    choice: Literal["kept", "all", "constant"],
    max_new_tokens: int,
) -> float:
    """What the loss of an update is divided by.

    Args:
        trees, advantages, credits: of the update, trees that are left out included.
        choice: ``kept`` takes what is trained, ``all`` also what is left out, ``constant`` the tokens that all
            trajectories would have at the length limit, whatever was sampled (Dr.GRPO, arXiv 2503.20783).
        max_new_tokens: the length limit of a trajectory.
    """
    if choice == "constant":
        return float(sum(tree.num_trajectories for tree in trees) * max_new_tokens)
    counted = [own for own, of in zip(credits, advantages, strict=True) if choice == "all" or of is not None]
    return sum(credit.denominator for credit in counted)


def _shares(tree: Tree) -> FloatArray:
    """Product of draws / B over the steps from the root to each node; [N], 1 at the root."""
    drawn_N, share_N = draws_at(tree), np.ones(len(tree.nodes))
    for node in tree.nodes[1:]:
        share_N[node.index] = share_N[node.parent] * node.draws / drawn_N[node.parent]
    return share_N
