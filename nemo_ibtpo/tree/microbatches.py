"""From the trees of an optimizer step to micro-batches: which rank computes which tokens, in which pass.

Pure Python and numpy, the same on every rank. Invariants (asserted by ``tests/unit/tree/test_microbatches.py``):

- Every sampled token is in the loss of exactly one micro-batch; a prompt token is in none.
- No micro-batch holds more than ``max_tokens`` tokens.
- All data-parallel ranks get the same number of micro-batches, at least one, because every pass is a collective;
  it is a multiple of ``multiple_of``, which interleaved pipelines ask for.
- A tree larger than the budget is cut. A cut is exact: in depth-first order the tokens from ``a`` on need, besides
  themselves, only the ancestors of token ``a``, so a piece repeats those and takes them out of its loss.

Cost is what a transformer spends on a piece: linear in its tokens plus attention along the paths. Pieces go,
largest first, to the least loaded rank, and there into the first micro-batch with room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from nemo_ibtpo.tree.packing import FloatArray, IntArray, PackedTrees, concat


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Tokens of one forward and backward pass.

    Attributes:
        packed: the trees or pieces of trees; ``loss_mask`` is True for tokens whose loss is computed here.
        fields: further values per token, [T] each, such as advantages and log-probabilities.
    """

    packed: PackedTrees
    fields: Mapping[str, FloatArray]

    def __len__(self) -> int:
        return len(self.packed)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Micro-batches of all data-parallel ranks.

    Attributes:
        ranks: micro-batches of each rank, equally many.
        balance: mean over largest cost of the ranks, 1 when all have the same.
        fill: tokens in all micro-batches over ``max_tokens`` times their number.
    """

    ranks: list[list[MicroBatch]]
    balance: float
    fill: float


def take(batch: MicroBatch, index: IntArray, in_loss: IntArray) -> MicroBatch:
    """The tokens at ``index`` as a packed sequence of their own.

    Args:
        index: increasing storage indices; with a token it holds all of the token's ancestors.
        in_loss: the part of ``index`` that stays in the loss.
    """
    old = batch.packed
    chosen = {field.name: getattr(old, field.name)[index] for field in fields(old)}
    # Where each old index lies in the new sequence, or would lie if it were there.
    position = np.searchsorted(index, np.arange(len(old) + 1))
    chosen["subtree_end"] = position[chosen["subtree_end"]]
    has_predecessor = chosen["predecessor"] >= 0
    chosen["predecessor"] = np.where(has_predecessor, position[chosen["predecessor"]], -1)
    chosen["loss_mask"] = chosen["loss_mask"] & np.isin(index, in_loss)
    return MicroBatch(PackedTrees(**chosen), {name: values[index] for name, values in batch.fields.items()})


def cut(batch: MicroBatch, max_tokens: int) -> list[MicroBatch]:
    """Cut one tree into pieces of at most ``max_tokens`` tokens; a tree that fits is returned as it is.

    Raises:
        ValueError: a path is longer than ``max_tokens``, so that no cut can help.
    """
    packed, pieces, start = batch.packed, [], 0
    if len(packed) <= max_tokens:
        return [batch]
    if (longest := int(packed.depth.max()) + 1) > max_tokens:
        raise ValueError(
            f"a trajectory of {longest} tokens, prompt included, does not fit into a micro-batch of {max_tokens}; "
            f"set actor.max_tokens_per_microbatch to at least {longest}"
        )
    while start < len(packed):
        ancestors = np.flatnonzero(packed.subtree_end[:start] > start)
        end = min(start + max_tokens - len(ancestors), len(packed))
        if end < len(packed):
            # Of the later half of the places to cut, take the one that repeats the fewest ancestors.
            first = start + (end - start + 1) // 2
            end = first + int(np.argmin(packed.depth[first : end + 1]))
        body = np.arange(start, end)
        pieces.append(take(batch, np.concatenate((ancestors, body)), body))
        start = end
    return pieces


def cost(packed: PackedTrees, attention_weight: float) -> float:
    """Tokens plus ``attention_weight`` times the pairs that attend to each other."""
    return len(packed) + attention_weight * float(packed.depth.sum() + len(packed))


def schedule(
    trees: Sequence[MicroBatch],
    *,
    max_tokens: int,
    num_ranks: int,
    multiple_of: int = 1,
    attention_weight: float = 0.0,
) -> Schedule:
    """Distribute single trees over ranks and micro-batches.

    Args:
        trees: one tree each, with the values that its tokens carry.
        max_tokens: most tokens of a micro-batch.
        num_ranks: data-parallel ranks.
        multiple_of: what the number of micro-batches of a rank must be a multiple of.
        attention_weight: cost of one attended pair relative to one token's linear work.

    Raises:
        ValueError: there is no tree, or a trajectory is longer than ``max_tokens``.
    """
    if not trees:
        raise ValueError("no tree to schedule: every group was dropped")
    pieces = [piece for tree in trees for piece in cut(tree, max_tokens)]
    costs = [cost(piece.packed, attention_weight) for piece in pieces]
    loads = [0.0] * num_ranks
    bins: list[list[list[MicroBatch]]] = [[] for _ in range(num_ranks)]
    for i in sorted(range(len(pieces)), key=lambda i: -costs[i]):
        rank = loads.index(min(loads))
        loads[rank] += costs[i]
        room = (b for b in bins[rank] if sum(map(len, b)) + len(pieces[i]) <= max_tokens)
        home = next(room, None)
        if home is None:
            bins[rank].append([pieces[i]])
        else:
            home.append(pieces[i])
    passes = -(-max(map(len, bins)) // multiple_of) * multiple_of
    for own in bins:
        while len(own) < passes:
            crowded = max(own, key=len, default=[])
            # A rank with fewer passes spreads its pieces; with nothing left to spread it repeats a piece
            # outside the loss, because an empty pass would leave the others waiting.
            own.append([crowded.pop()] if len(crowded) > 1 else [_idle(pieces[0])])
    ranks = [[_merge(group) for group in own] for own in bins]
    total = sum(len(batch) for own in ranks for batch in own)
    return Schedule(
        ranks=ranks,
        balance=sum(loads) / num_ranks / max(loads),
        fill=total / (max_tokens * passes * num_ranks),
    )


def _idle(batch: MicroBatch) -> MicroBatch:
    """The first token alone, outside the loss."""
    return take(batch, np.array([0]), np.array([], dtype=np.int64))


def _merge(batches: Sequence[MicroBatch]) -> MicroBatch:
    return MicroBatch(
        concat([batch.packed for batch in batches]),
        {name: np.concatenate([batch.fields[name] for batch in batches]) for name in batches[0].fields},
    )
