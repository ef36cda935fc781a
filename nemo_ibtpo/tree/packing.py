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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_ibtpo.tree.tree import Tree

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PackedTrees:
    """Trees packed for one forward pass. Every array has one entry a token, T in all.

    Attributes:
        tokens: token ids.
        depth: index of the token on its own path, 0 for the first prompt token.
        predecessor: storage index of the token before it on its path, -1 for the first prompt token.
        subtree_end: exclusive end of the token's subtree; ``t < subtree_end[t] <= T``. Inside a step every
            token has the same end, because the rest of the step follows it on each of its paths.
        n_paths: trajectories through the token, a leaf counted once per draw that ended in it.
        node: row of the token's node in per-node arrays of all packed trees, numbered tree after tree in the
            order of ``Tree.nodes`` (root included), so that ``per_node[node]`` spreads them over tokens.
        tree: index of the token's tree among the packed ones.
        behaviour_logprobs: log-probability of the token under the policy that sampled it, 0 for prompt tokens.
        loss_mask: True for sampled tokens, False for prompt tokens.
    """

    tokens: IntArray
    depth: IntArray
    predecessor: IntArray
    subtree_end: IntArray
    n_paths: IntArray
    node: IntArray
    tree: IntArray
    behaviour_logprobs: FloatArray
    loss_mask: BoolArray

    def __len__(self) -> int:
        return len(self.tokens)
