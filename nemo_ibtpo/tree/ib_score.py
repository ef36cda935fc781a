"""IB-Score: where in a tree another rollout tells most for its uncertainty.

For a node v whose continuations were drawn B times, with c_b the child of draw b (paper)::

    eta1(c) = p_hat(a*|c) / p_hat(a*|v) - (1 + 1/beta)      information gain
    eta2(c) = pi(c)                                         confidence
    IB(v)   = (1 + beta) / B * sum_b eta1(c_b) * eta2(c_b)

p_hat is :meth:`Tree.values`; pi(c) is the step's probability under the policy that sampled it, by default the
geometric mean over its tokens (declared). Where p_hat(a*|v) is 0 the ratio is 1: no information (declared).

With the ``children_mean`` estimator E[eta1] = -1/beta over the draws of every node, and therefore
``beta * E[eta1 * eta2] = beta * Cov(eta1, eta2) - E[pi]``; the covariances here are population ones (divided by
B), for which that is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np

from nemo_ibtpo.config.schema import IBScoreConfig
from nemo_ibtpo.tree.tree import ROOT, FloatArray, IntArray, Tree


def eta1(tree: Tree, config: IBScoreConfig) -> FloatArray:
    """Information gain of each step over its parent; [N], nan at the root."""
    values_N = tree.values(config.value_estimator)
    parent_value_N = values_N[_parents(tree)]
    ratio_N = np.divide(values_N, parent_value_N, out=np.ones_like(values_N), where=parent_value_N > 0)
    gain_N = ratio_N - (1 + 1 / config.beta)
    gain_N[ROOT] = np.nan
    return gain_N


def eta2(tree: Tree, config: IBScoreConfig) -> FloatArray:
    """Probability of each step under the policy that sampled it; [N], in [0, 1], nan at the root."""
    exponents = [sum(node.logprobs) for node in tree.nodes[1:]]
    if config.step_probability == "geometric_mean":
        exponents = [e / len(node.tokens) for e, node in zip(exponents, tree.nodes[1:], strict=True)]
    return np.exp([np.nan, *exponents])


def ib_scores(tree: Tree, config: IBScoreConfig) -> FloatArray:
    """IB-Score of each node; [N], nan for leaves, which have no continuation."""
    return (1 + config.beta) * _mean_over_draws(tree, eta1(tree, config) * eta2(tree, config))


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
    gain_N, confidence_N = eta1(tree, config), eta2(tree, config)
    mean_product_N = _mean_over_draws(tree, gain_N * confidence_N)
    means_N = _mean_over_draws(tree, gain_N) * _mean_over_draws(tree, confidence_N)
    drawn_N = draws_at(tree)
    scored_N, twice_N = drawn_N >= 1, drawn_N >= 2
    return TreeStatistics(
        trees=1,
        mixed_trees=int(rewards_G.min() < rewards_G.max()),
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
