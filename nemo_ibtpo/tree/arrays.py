"""The nodes of a tree as a few arrays: the form in which ranks exchange trees.

Nothing is lost: ``nodes_from_arrays(nodes_to_arrays(nodes)) == nodes``. Log-probabilities that engines return are
float32 numbers, and take four bytes each then; others keep eight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from nemo_ibtpo.tree.node import FinishReason, Node

_REASONS: tuple[FinishReason | None, ...] = (None, *get_args(FinishReason))
# Of a tree's nodes, one number each.
_NUMBERS = ("parent", "draws", "round")
# Of a node's tokens, one value each, or none for all of them.
_PER_TOKEN = ("tokens", "logprobs", "versions")


def nodes_to_arrays(nodes: Sequence[Node]) -> dict[str, NDArray[Any]]:
    """Arrays that hold the nodes [N] and their tokens [T], node after node."""
    arrays: dict[str, NDArray[Any]] = {
        name: np.array([getattr(node, name) for node in nodes], dtype=np.int32) for name in _NUMBERS
    }
    arrays["finish_reason"] = np.array([_REASONS.index(node.finish_reason) for node in nodes], dtype=np.int8)
    arrays["reward"] = np.array([np.nan if node.reward is None else node.reward for node in nodes])
    for name in _PER_TOKEN:
        values = [getattr(node, name) for node in nodes]
        arrays[f"{name}_length"] = np.array(list(map(len, values)), dtype=np.int32)
        arrays[name] = np.fromiter(chain.from_iterable(values), np.float64 if name == "logprobs" else np.int32)
    small = arrays["logprobs"].astype(np.float32)
    if np.array_equal(small, arrays["logprobs"]):
        arrays["logprobs"] = small
    kept = [sets for node in nodes for sets in node.kept]
    arrays["kept_length"] = np.array([len(node.kept) for node in nodes], dtype=np.int32)
    arrays["kept_bytes"] = np.array(list(map(len, kept)), dtype=np.int32)
    arrays["kept"] = np.frombuffer(b"".join(kept), dtype=np.uint8)
    return arrays


def nodes_from_arrays(arrays: dict[str, NDArray[Any]]) -> list[Node]:
    """The nodes that :func:`nodes_to_arrays` was called with."""
    per_token = {name: _split(arrays[name].tolist(), arrays[f"{name}_length"]) for name in _PER_TOKEN}
    kept = _split(_split(arrays["kept"].tobytes(), arrays["kept_bytes"]), arrays["kept_length"])
    numbers = zip(*(arrays[name].tolist() for name in (*_NUMBERS, "finish_reason", "reward")), strict=True)
    nodes: list[Node] = []
    for index, (parent, draws, round, reason, reward) in enumerate(numbers):
        nodes.append(
            Node(
                index,
                parent,
                tuple(per_token["tokens"][index]),
                tuple(per_token["logprobs"][index]),
                draws,
                round,
                finish_reason=_REASONS[reason],
                reward=None if math.isnan(reward) else reward,
                versions=tuple(per_token["versions"][index]),
                kept=tuple(kept[index]),
            )
        )
        if index:
            nodes[parent].children.append(index)
    return nodes


def _split(values: Any, lengths: NDArray[Any]) -> list[Any]:
    """The values cut into consecutive parts of these lengths."""
    return [values[start:end] for start, end in pairwise([0, *accumulate(lengths.tolist())])]
