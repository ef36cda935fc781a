"""Trees as one flat token sequence, each shared prefix once: the second of the two things that travel.

Tokens lie in depth-first order, one tree after the other. Three integers a token say all that the model needs
to treat the sequence as the tree it is:

- ``depth[t]``, the token's index on its own root-to-leaf path, is its rotary position;
- ``subtree_end[t]``: token i may attend to token j iff ``j <= i < subtree_end[j]``;
- ``predecessor[t]``: the storage index of the token before it on its path. The log-probability of token t is
  read from the hidden state of its predecessor, so that the usual labels shifted by one, which are wrong at
  every branch, are never used.

Several trees need no further rule: a token of one tree lies outside the subtrees of every other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_ibtpo.tree.node import ROOT, Node
from nemo_ibtpo.tree.tree import FloatArray as Float64Array
from nemo_ibtpo.tree.tree import Tree

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Credit:
    """What the tokens of each step of one tree weigh in the loss; [N] each, of which the root's entry is not used.

    A token that several trajectories share is trained once, with sums over these trajectories. Let u_i be what each
    token of trajectory i weighs and A_i its advantage at that step.

    Attributes:
        weight: sum of u_i.
        positive: sum of u_i * max(A_i, 0).
        negative: sum of u_i * max(-A_i, 0).
        denominator: the tree's share of what the loss of an update is divided by; a tree that is left out has one
            as well.
    """

    weight: Float64Array
    positive: Float64Array
    negative: Float64Array
    denominator: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of one tree lie; [T] each, see the module. Needs no token, so planning with it is cheap.

    Attributes:
        node: index of the token's step in ``Tree.nodes``.
        depth: index of the token on its own path, 0 for the first prompt token.
        predecessor: storage index of the token before it on its path, -1 for the first prompt token.
        subtree_end: exclusive end of the token's subtree; ``t < subtree_end[t] <= T``. Inside a step every
            token has the same end, because the rest of the step follows it on each of its paths.
        run_start: True where a run begins: the tokens of a run, and no others, are on the same paths; prompt and
            response are apart.
    """

    node: IntArray
    depth: IntArray
    predecessor: IntArray
    subtree_end: IntArray
    run_start: BoolArray

    def __len__(self) -> int:
        return len(self.node)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Trees, or pieces of trees, packed for one forward and backward pass. [T] each.

    Attributes:
        tokens: token ids.
        depth, predecessor, subtree_end, run_start: see :class:`Layout`.
        sampled: True for sampled tokens, False for prompt tokens.
        in_loss: True for tokens whose loss is computed here: the sampled ones but those that a piece of a tree
            repeats because others of its tokens attend to them.
        behaviour_logprobs: log-probability (nats) under the policy that sampled the token, 0 in the prompt.
        weight, positive, negative: the :class:`Credit` of the token's step, 0 in the prompt.
        kept: what the token was drawn from, see :class:`~nemo_ibtpo.tree.tree.Node`, empty in the prompt; None where
            no token was drawn from a truncated distribution.
        old_logprobs: log-probability (nats) under the policy before the step's first update; None until it has been
            computed, or if that is the policy that the pass over this batch computes with.
        reference_logprobs: under the reference policy; None until it has been computed, or without a KL term.
        lag: optimizer steps between the policy that sampled the token and the one before the step's first update, 0
            in the prompt; None where trees are not carried over a step, so that it is 0 everywhere.
    """

    tokens: IntArray
    depth: IntArray
    predecessor: IntArray
    subtree_end: IntArray
    run_start: BoolArray
    sampled: BoolArray
    in_loss: BoolArray
    behaviour_logprobs: FloatArray
    weight: FloatArray
    positive: FloatArray
    negative: FloatArray
    kept: NDArray[np.object_] | None = None
    old_logprobs: FloatArray | None = None
    reference_logprobs: FloatArray | None = None
    lag: IntArray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def runs(self) -> IntArray:
        """Of each token in the loss the number of its run; [N], from 0 in order."""
        starts_N = self.run_start[self.in_loss]
        starts_N[:1] = True  # where a run was cut in front of this batch
        return np.cumsum(starts_N) - 1

    def __post_init__(self) -> None:
        shapes = {name: values.shape for name, values in _arrays(self).items()}
        if len(set(shapes.values())) != 1 or len(self.tokens.shape) != 1:
            raise ValueError(f"packed arrays must all have the one shape [T]; they have {shapes}")


def _arrays(batch: PackedBatch) -> dict[str, NDArray[Any]]:
    """The arrays that are there, by name."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if value is not None}


def layout(tree: Tree) -> Layout:
    """Lay a tree out depth-first, children oldest first."""
    order = _depth_first(tree)
    lengths_N = np.array([len(node.tokens) for node in tree.nodes])
    parent_N = np.array([node.parent for node in tree.nodes])

    # Where each node's tokens lie (its storage range) and how deep its first token is.
    storage_end_N = np.empty_like(lengths_N)
    storage_end_N[order] = np.cumsum(lengths_N[order])
    start_N = storage_end_N - lengths_N
    # Lists in these loops: single entries of an array are slow to reach.
    depths, subtree_ends = [0] * len(tree.nodes), storage_end_N.tolist()
    for node in tree.nodes[1:]:
        depths[node.index] = depths[node.parent] + len(tree.nodes[node.parent].tokens)
    for node in reversed(tree.nodes[1:]):
        subtree_ends[node.parent] = max(subtree_ends[node.parent], subtree_ends[node.index])
    depth_N, subtree_end_N = np.array(depths), np.array(subtree_ends)
    # The last row of storage_end_N stands in for the root's parent, which index -1 picks; then it is -1.
    before_N = np.where(parent_N >= 0, storage_end_N[parent_N] - 1, -1)

    n_paths_N = tree.n_paths()
    begins_N = (parent_N <= ROOT) | (n_paths_N != n_paths_N[parent_N])

    node_T = np.repeat(order, lengths_N[order])
    position_T = np.arange(len(node_T))
    offset_T = position_T - start_N[node_T]
    return Layout(
        node=node_T,
        depth=depth_N[node_T] + offset_T,
        predecessor=np.where(offset_T == 0, before_N[node_T], position_T - 1),
        subtree_end=subtree_end_N[node_T],
        run_start=(offset_T == 0) & begins_N[node_T],
    )


def pack_tree(tree: Tree, credit: Credit | None = None, version: int | None = None) -> PackedBatch:
    """Pack one whole tree, every sampled token in the loss.

    Args:
        tree: the trajectories of one prompt.
        credit: what its tokens weigh; None for nothing, where only log-probabilities are wanted.
        version: of the policy before the step's first update; None if no token is of an older one.

    Raises:
        ValueError: the credit belongs to another tree.
    """
    zeros_N = np.zeros(len(tree.nodes))
    credit = credit or Credit(zeros_N, zeros_N, zeros_N, 0.0)
    if len(credit.weight) != len(tree.nodes):
        raise ValueError(f"credit for {len(credit.weight)} steps does not fit a tree of {len(tree.nodes)}")
    laid = layout(tree)
    in_order = [tree.nodes[i] for i in laid.node[np.flatnonzero(np.diff(laid.node, prepend=-1))]]
    sampled_T = laid.node != ROOT

    def versions(node: Node) -> Sequence[int]:
        return node.versions if node.index != ROOT else (version or 0,) * len(node.tokens)

    def spread(per_node_N: Float64Array) -> FloatArray:
        return np.where(sampled_T, per_node_N[laid.node], 0).astype(np.float32)

    return PackedBatch(
        tokens=_flatten((node.tokens for node in in_order), np.int64, len(laid)),
        depth=laid.depth,
        predecessor=laid.predecessor,
        subtree_end=laid.subtree_end,
        run_start=laid.run_start,
        sampled=sampled_T,
        in_loss=sampled_T,
        behaviour_logprobs=_flatten(
            (node.logprobs or (0.0,) * len(node.tokens) for node in in_order), np.float32, len(laid)
        ),
        weight=spread(credit.weight),
        positive=spread(credit.positive),
        negative=spread(credit.negative),
        kept=_kept(in_order, len(laid)),
        lag=None if version is None else version - _flatten(map(versions, in_order), np.int64, len(laid)),
    )


def _kept(in_order: Sequence[Node], count: int) -> NDArray[np.object_] | None:
    """What each token was drawn from; [T] of bytes, None where that was the whole vocabulary throughout."""
    if not any(node.kept for node in in_order):
        return None
    kept_T = np.empty(count, dtype=object)
    kept_T[:] = list(chain.from_iterable(node.kept or (b"",) * len(node.tokens) for node in in_order))
    return kept_T


def _depth_first(tree: Tree) -> IntArray:
    order, stack = [], [ROOT]
    while stack:
        order.append(stack.pop())
        stack.extend(reversed(tree.nodes[order[-1]].children))
    return np.array(order)


def _flatten(rows: Iterable[Sequence[float]], dtype: type[np.generic], count: int) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(rows), dtype=dtype, count=count)


def take(batch: PackedBatch, index: IntArray, in_loss: IntArray) -> PackedBatch:
    """The tokens at ``index`` as a packed sequence of their own.

    Args:
        batch: trees or pieces of trees.
        index: increasing storage indices; with a token it holds all of the token's ancestors.
        in_loss: the part of ``index`` that stays in the loss.
    """
    chosen = {name: values[index] for name, values in _arrays(batch).items()}
    # Where each old index lies in the new sequence, or would lie if it were there.
    position = np.searchsorted(index, np.arange(len(batch) + 1))
    chosen["subtree_end"] = position[chosen["subtree_end"]]
    has_predecessor = chosen["predecessor"] >= 0
    chosen["predecessor"] = np.where(has_predecessor, position[chosen["predecessor"]], -1)
    chosen["in_loss"] = chosen["in_loss"] & np.isin(index, in_loss)
    return PackedBatch(**chosen)


def concat(parts: Sequence[PackedBatch]) -> PackedBatch:
    """One sequence with the trees of all parts, in order.

    Raises:
        ValueError: there is no part, or log-probabilities are known for some of them only.
    """
    if not parts:
        raise ValueError("nothing to pack: at least one tree is needed")
    if len(parts) == 1:
        return parts[0]
    arrays = [_arrays(part) for part in parts]
    if len({frozenset(own) for own in arrays}) != 1:
        raise ValueError("some parts of a batch have log-probabilities that others lack")
    for own, offset in zip(arrays, accumulate(map(len, parts), initial=0), strict=False):
        own["predecessor"] = np.where(own["predecessor"] >= 0, own["predecessor"] + offset, -1)
        own["subtree_end"] = own["subtree_end"] + offset
    return PackedBatch(**{name: np.concatenate([own[name] for own in arrays]) for name in arrays[0]})
