"""IB-Score: where in a tree another rollout tells most for its uncertainty.

For a node v whose continuations were drawn B times, with c_b the child of draw b (paper)::

    eta1(c) = p_hat(a*|c) / p_hat(a*|v) - (1 + 1/beta)      information gain
    eta2(c) = pi(c)                                         confidence
    IB(v)   = (1 + beta) / B * sum_b eta1(c_b) * eta2(c_b)

p_hat(a*|c) is :meth:`Tree.values`, and p_hat(a*|v) the mean of it over the B draws at v (declared): value and draws
then belong together. The leaf mean of v itself would not do, since it weighs a child by the trajectories through it,
which grow with every branch below. pi(c) is the step's probability under the policy that sampled it, by default the
geometric mean over its tokens (declared). Where p_hat(a*|v) is 0 the ratio is 1: no information (declared).

So E[eta1] = -1/beta over the draws of every node, and therefore
``beta * E[eta1 * eta2] = beta * Cov(eta1, eta2) - E[pi]``; the covariances here are population ones (divided by
B), for which that is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np

from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.tree.node import ROOT, Node
from nemo_ibtpo.tree.tree import FloatArray, IntArray, Tree


def eta1(tree: Tree, config: IBScoreConfig) -> FloatArray:
    """Information gain of each step over its parent's value; [N], nan at the root. What the advantage compares."""
    values_N = tree.values(config.value_estimator)
    return _gain(tree, config, values_N, values_N)


def eta1_of_draws(tree: Tree, config: IBScoreConfig) -> FloatArray:
    """Information gain of each step over the mean of the draws at its parent; [N], nan at the root. The score's."""
    values_N = tree.values(config.value_estimator)
    return _gain(tree, config, values_N, _mean_over_draws(tree, values_N))


def _gain(tree: Tree, config: IBScoreConfig, values_N: FloatArray, expected_N: FloatArray) -> FloatArray:
    """Of each step's value over what is expected at its parent."""
    expected_N = expected_N[_parents(tree)]
    ratio_N = np.divide(values_N, expected_N, out=np.ones_like(values_N), where=expected_N > 0)
    gain_N = ratio_N - (1 + 1 / config.beta)
    gain_N[ROOT] = np.nan
    return gain_N


def eta2(tree: Tree, config: IBScoreConfig) -> FloatArray:
    """Probability of each step under the policy that sampled it; [N], in [0, 1], nan at the root."""
    if config.step_probability == "geometric_mean":
        exponents = [node.logprob / len(node.tokens) for node in tree.nodes]
    else:
        exponents = [node.logprob for node in tree.nodes]
    exponents[ROOT] = np.nan
    return np.exp(exponents)


def ib_scores(tree: Tree, config: IBScoreConfig) -> FloatArray:
    """IB-Score of each node; [N], nan for leaves, which have no continuation."""
    return (1 + config.beta) * _mean_over_draws(tree, eta1_of_draws(tree, config) * eta2(tree, config))


def ib_scores_in_flight(tree: Tree, config: IBScoreConfig, in_flight_N: IntArray) -> FloatArray:
    """IB-Score of each node, sequences in flight counted as draws where they were branched; [N].

    A draw in flight counts as one that tells nothing, ratio 1 and probability 1 (declared), so that the branches
    chosen before it ends go elsewhere. Where nothing is in flight this is :func:`ib_scores`.
    """
    scores_N, drawn_N = ib_scores(tree, config), draws_at(tree)
    nothing = -(1 + config.beta) / config.beta
    with_virtual_N = (drawn_N * scores_N + in_flight_N * nothing) / np.maximum(1, drawn_N + in_flight_N)
    return np.where(in_flight_N > 0, with_virtual_N, scores_N)


def values_per_draw(tree: Tree, config: IBScoreConfig, in_flight_N: IntArray) -> FloatArray:
    """What one more draw at each node is worth, max(0, J) u / B; [N], nan for leaves.

    The information-bottleneck objective of a node, whose affine image the IB-Score is, is::

        J = 1 + beta E[eta1 eta2] = 1 + beta / (1 + beta) IB = 1 + beta Cov(eta1, eta2) - E[pi]

    It is a mean over draws, so drawing again does not lower it, and the paper's rule returns to the same steps. What
    a draw adds is a new child, which enters that mean with weight 1/B; a draw that repeats a known child adds none.
    Hence
    J u / B, with B the draws so far, those in flight included, and u the probability that a draw is new::

        u = 1 - sum over distinct children of exp(sum of the log-probabilities of their tokens)

    u is exact for whole steps under the policy that sampled them. A step that ends the answer may begin with another
    one that goes on: the former is then part of the latter's probability and is not counted twice, and that the
    answer may also end there is not known where it has not been seen; u is then a lower bound.

    J < 0 (less is learned than confidence costs) and u = 0 (all continuations are known) are worth 0, never less:
    divided by B, a negative value would grow with draws. A node without the room that another continuation needs is
    no candidate (:mod:`nemo_ibtpo.tree.branching.ranked`), nor is a leaf.
    """
    objective_N = 1 + config.beta / (1 + config.beta) * ib_scores(tree, config)
    drawn_N = draws_at(tree) + in_flight_N
    worth_N = np.maximum(0.0, objective_N) * new_probability(tree) / np.maximum(1, drawn_N)
    return np.asarray(worth_N)


def new_probability(tree: Tree) -> FloatArray:
    """u, the probability that a draw at each node begins with a step that is no child yet; [N], 1 for leaves."""
    mass_N = np.exp(np.array([node.logprob for node in tree.nodes]))
    for node in tree.nodes:
        if len(node.children) > 1:
            children = [tree.nodes[index] for index in node.children]
            for child in children:
                if child.is_leaf and any(_goes_on(other, child) for other in children):
                    mass_N[child.index] = 0.0
    return np.maximum(0.0, 1 - _sum_over_children(tree, mass_N))


def _goes_on(step: Node, last: Node) -> bool:
    """Whether a step that ends its trajectory begins with another one, which goes on."""
    shorter = len(step.tokens)
    return not step.is_leaf and shorter < len(last.tokens) and last.tokens[:shorter] == step.tokens


def _parents(tree: Tree) -> IntArray:
    parent_N = np.array([node.parent for node in tree.nodes])
    parent_N[ROOT] = ROOT
    return parent_N


def _mean_over_draws(tree: Tree, per_node: FloatArray) -> FloatArray:
    """Mean of ``per_node`` over the draws of each node's children; [N], nan where there are none."""
    sums_N = _sum_over_children(tree, _draws(tree) * per_node)
    drawn_N = draws_at(tree)
    return np.divide(sums_N, drawn_N, out=np.full(len(tree.nodes), np.nan), where=drawn_N > 0)


def draws_at(tree: Tree) -> IntArray:
    """B of each node, the times a continuation was drawn there; [N], 0 for leaves."""
    return _sum_over_children(tree, _draws(tree)).astype(np.int64)


def _draws(tree: Tree) -> FloatArray:
    return np.array([node.draws for node in tree.nodes], dtype=np.float64)


def _sum_over_children(tree: Tree, per_node: FloatArray) -> FloatArray:
    sums_N = np.bincount(_parents(tree)[1:], weights=per_node[1:], minlength=len(tree.nodes))
    return np.asarray(sums_N, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class TreeStatistics:
    """Sums over trees; those of several ranks add up to the sums over all their trees.

    Attributes:
        trees: trees, one a prompt.
        mixed_trees: trees whose rewards differ.
        trajectories: trajectories.
        reward: rewards of the trajectories.
        sampled_tokens: tokens that the engine drew.
        unique_tokens, duplicated_tokens: tokens of the trees, a shared one counted once or for every trajectory.
        scored_nodes, ib_score: nodes with an IB-Score; their scores.
        cov_nodes, cov: nodes with at least two draws; Cov(eta1, eta2) over the draws of each.
    """

    trees: int = 0
    mixed_trees: int = 0
    trajectories: int = 0
    reward: float = 0.0
    sampled_tokens: int = 0
    unique_tokens: int = 0
    duplicated_tokens: int = 0
    scored_nodes: int = 0
    ib_score: float = 0.0
    cov_nodes: int = 0
    cov: float = 0.0

    def __add__(self, other: TreeStatistics) -> TreeStatistics:
        return TreeStatistics(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def means(self) -> dict[str, float]:
        """What is reported; nan for a mean over nothing (Cov, when no node was drawn from twice).

        ``eff_rate`` is the share of prompts whose rewards differ, ``avg_rate`` the mean reward of a
        trajectory, the token counts are per prompt.
        """
        return {
            "eff_rate": _ratio(self.mixed_trees, self.trees),
            "avg_rate": _ratio(self.reward, self.trajectories),
            "ib_score": _ratio(self.ib_score, self.scored_nodes),
            "cov": _ratio(self.cov, self.cov_nodes),
            "trajectories_per_prompt": _ratio(self.trajectories, self.trees),
            "sampled_tokens_per_prompt": _ratio(self.sampled_tokens, self.trees),
            "unique_tokens_per_prompt": _ratio(self.unique_tokens, self.trees),
            "duplicated_tokens_per_prompt": _ratio(self.duplicated_tokens, self.trees),
        }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def tree_statistics(trees: Iterable[Tree], config: IBScoreConfig) -> TreeStatistics:
    """Statistics of trees whose rewards are all known."""
    return sum((_statistics(tree, config) for tree in trees), TreeStatistics())


def _statistics(tree: Tree, config: IBScoreConfig) -> TreeStatistics:
    rewards_G = tree.rewards()
    gain_N, confidence_N = eta1_of_draws(tree, config), eta2(tree, config)
    mean_product_N = _mean_over_draws(tree, gain_N * confidence_N)
    means_N = _mean_over_draws(tree, gain_N) * _mean_over_draws(tree, confidence_N)
    drawn_N = draws_at(tree)
    scored_N, twice_N = drawn_N >= 1, drawn_N >= 2
    return TreeStatistics(
        trees=1,
        mixed_trees=int(tree.is_mixed),
        trajectories=len(rewards_G),
        reward=float(rewards_G.sum()),
        sampled_tokens=tree.sampled_tokens,
        unique_tokens=tree.unique_tokens,
        duplicated_tokens=tree.duplicated_tokens,
        scored_nodes=int(scored_N.sum()),
        ib_score=float((1 + config.beta) * mean_product_N[scored_N].sum()),
        cov_nodes=int(twice_N.sum()),
        cov=float((mean_product_N - means_N)[twice_N].sum()),
    )
