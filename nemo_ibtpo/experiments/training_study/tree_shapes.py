"""What the trees look like that an arm trained on, from those that its runs kept.

A continuation is a rollout that was forced through a step: a draw at the step beyond those that reached it. Where a
sampler puts its continuations, and whether they come to anything new, decides what its tokens buy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_ibtpo.inspection.records import TreeRecord

NAMES = ("trajectories", "distinct", "from_prompt", "continued_steps", "continuations", "forked", "informative")


def mean_shape(trees: Sequence[TreeRecord]) -> dict[str, float | None]:
    """Means over trees.

    Returns:
        By name: ``trajectories`` of a tree; ``distinct`` ones among them; ``from_prompt``, drawn at the prompt;
        ``continued_steps`` below the prompt; ``continuations`` from them; of these steps the shares with more than
        one child (``forked``) and with children of different value (``informative``), None where there are none.
    """
    totals = np.sum([_counts(tree) for tree in trees], axis=0)
    *counts, steps, continuations, forked, informative = totals.tolist()
    per_tree = [count / len(trees) for count in (*counts, steps, continuations)]
    shares = [share / steps if steps else None for share in (forked, informative)]
    return dict(zip(NAMES, [*per_tree, *shares], strict=True))


def _counts(tree: TreeRecord) -> tuple[int, ...]:
    children: dict[int, list[int]] = {}
    for index, node in enumerate(tree.nodes):
        children.setdefault(node.parent, []).append(index)
    leaves = [node for index, node in enumerate(tree.nodes) if index not in children]
    draws = {
        parent: sum(tree.nodes[child].draws for child in below) for parent, below in children.items() if parent >= 0
    }
    continued = {parent: drawn - tree.nodes[parent].draws for parent, drawn in draws.items() if parent > 0}
    continued = {parent: count for parent, count in continued.items() if count > 0}
    values = {parent: {tree.nodes[child].value for child in children[parent]} for parent in continued}
    return (
        sum(leaf.draws for leaf in leaves),
        len(leaves),
        draws[0],
        len(continued),
        sum(continued.values()),
        sum(len(children[parent]) > 1 for parent in continued),
        sum(len(different) > 1 for different in values.values()),
    )
