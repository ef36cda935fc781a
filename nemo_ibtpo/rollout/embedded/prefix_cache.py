"""Keys and values of prefixes seen before: a radix tree over token ids with least-recently-used eviction.

Invariants (asserted by ``tests/unit/rollout/test_prefix_cache.py``):

- An edge owns the keys and values of exactly its own tokens, so a prefix shared by many sequences is held once.
- At most ``capacity`` tokens are held, also while a sequence is being inserted.
- A node is never older than its children: whoever touches a path touches its deepest node first. The oldest node
  is therefore always a leaf, and eviction takes it without searching.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch


@dataclass(eq=False, slots=True)
class _Node:
    """The edge that leads to a node: its tokens, and their keys and values [layers, 2, kv_heads, n, head_dim]."""

    tokens: tuple[int, ...]
    kv: torch.Tensor
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)


def _common_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class PrefixCache:
    """Maps token sequences to the keys and values of their longest known prefix.

    Args:
        capacity: most tokens held.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._root = _Node((), torch.empty(0), None)
        self._oldest_first: OrderedDict[_Node, None] = OrderedDict()
        self.held_tokens = 0

    def match(self, tokens: tuple[int, ...]) -> list[torch.Tensor]:
        """Keys and values of the longest known prefix of ``tokens``.

        Returns:
            Segments [layers, 2, kv_heads, n_i, head_dim] in order; the n_i sum to the length of the prefix.
            They stay valid when the cache evicts them.
        """
        path, length = self._walk(tokens)
        segments = [node.kv for node in path]
        if path and (excess := sum(len(node.tokens) for node in path) - length):
            segments[-1] = segments[-1][..., :-excess, :]
        self._touch(path)
        return segments

    def insert(self, tokens: tuple[int, ...], kv: torch.Tensor) -> None:
        """Remember a sequence; the part that is not yet known is copied.

        A sequence longer than the capacity is not kept.

        Args:
            tokens: the sequence.
            kv: its keys and values [layers, 2, kv_heads, len(tokens), head_dim].
        """
        if len(tokens) > self.capacity:
            return
        path, length = self._walk(tokens)
        if length == len(tokens):
            self._touch(path)
            return
        if path and (excess := sum(len(node.tokens) for node in path) - length):
            path[-1] = self._split(path[-1], len(path[-1].tokens) - excess)
        self._touch(path)
        # The path is the youngest now and fits with the new tokens, so eviction ends before it reaches the path.
        while self.held_tokens + len(tokens) - length > self.capacity:
            self._evict_oldest()
        parent = path[-1] if path else self._root
        leaf = _Node(tokens[length:], kv[..., length:, :].clone(), parent)
        parent.children[tokens[length]] = leaf
        self.held_tokens += len(leaf.tokens)
        self._touch([*path, leaf])

    def _walk(self, tokens: tuple[int, ...]) -> tuple[list[_Node], int]:
        """The nodes along the longest known prefix, the last perhaps used in part, and the prefix's length."""
        node, path, length = self._root, [], 0
        while length < len(tokens) and (child := node.children.get(tokens[length])) is not None:
            path.append(child)
            piece = tokens[length : length + len(child.tokens)]
            if piece != child.tokens:
                return path, length + _common_length(piece, child.tokens)
            length += len(piece)
            node = child
        return path, length

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut an edge after ``at`` tokens and return the new upper node. Both halves get storage of their own,
        so that evicting the lower one frees its memory."""
        assert node.parent is not None
        upper = _Node(node.tokens[:at], node.kv[..., :at, :].clone(), node.parent)
        upper.parent.children[upper.tokens[0]] = upper  # type: ignore[union-attr]
        node.tokens, node.kv, node.parent = node.tokens[at:], node.kv[..., at:, :].clone(), upper
        upper.children[node.tokens[0]] = node
        return upper

    def _touch(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._oldest_first[node] = None
            self._oldest_first.move_to_end(node)

    def _evict_oldest(self) -> None:
        node, _ = self._oldest_first.popitem(last=False)
        assert node.parent is not None and not node.children
        del node.parent.children[node.tokens[0]]
        self.held_tokens -= len(node.tokens)
