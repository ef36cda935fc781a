"""From the trees of an update to micro-batches: which rank computes which tokens, in which pass.

Planning needs the layout of every tree and no token, so all ranks make the same plan, and each then packs only what
it trains. Invariants (asserted by ``tests/unit/tree/test_microbatches.py``):

- Every sampled token is in the loss of exactly one micro-batch; a prompt token is in none.
- No micro-batch holds more than ``max_tokens`` tokens.
- All data-parallel ranks get the same number of micro-batches, at least one, because every pass is a collective;
  it is a multiple of ``multiple_of``, which interleaved pipelines ask for.
- A tree larger than the budget is cut. A cut is exact: in depth-first order the tokens from ``a`` on need, besides
  themselves, only the ancestors of token ``a``, so a piece repeats those and takes them out of its loss.

Cost is what a transformer spends on a piece: linear in its tokens plus attention along the paths. Pieces go,
largest first, to the least loaded rank, and there into the first micro-batch with room. A tree that fits is cut as
well if all ranks are done earlier then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_ibtpo.tree.packing import Credit, IntArray, Layout, PackedBatch, concat, pack_tree, take
from nemo_ibtpo.tree.tree import Tree

# A tree that would fit is not cut for the sake of balance if its pieces cost so many times as much.
_MOST_REPEATED = 1.1


@dataclass(frozen=True, slots=True)
class Piece:
    """A tree, or a part of it, that one pass computes.

    Attributes:
        tree: index of the tree among those that were scheduled.
        start, end: storage range of the tokens in the loss.
        tokens: what the pass holds: the range and the ancestors of its first token.
        pairs: pairs of these tokens of which one attends to the other, each token to itself included.
    """

    tree: int
    start: int
    end: int
    tokens: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """Micro-batches of all data-parallel ranks.

    Attributes:
        ranks: of each rank its micro-batches, equally many, as the pieces they hold.
        balance: mean over largest cost of the ranks, 1 when all have the same.
        fill: tokens in all micro-batches over ``max_tokens`` times their number.
    """

    ranks: list[list[list[Piece]]]
    balance: float
    fill: float


def cut(tree: int, laid: Layout | PackedBatch, max_tokens: int, *, whole_runs: bool = False) -> list[Piece]:
    """Cut one tree into pieces of at most ``max_tokens`` tokens; a tree that fits is one piece.

    Args:
        tree: its index among those that are scheduled.
        laid: its layout.
        max_tokens: of a piece.
        whole_runs: cut only where a run begins. The ancestors of a run and the run are one path, which fits.

    Raises:
        ValueError: a path is longer than ``max_tokens``, so that no cut can help.
    """
    pieces, start = [], 0
    if len(laid) > max_tokens and (longest := int(laid.depth.max()) + 1) > max_tokens:
        raise ValueError(
            f"a trajectory of {longest} tokens, prompt included, does not fit into a micro-batch of {max_tokens}; "
            f"set actor.max_tokens_per_microbatch to at least {longest}"
        )
    allowed = laid.run_start if whole_runs else np.ones(len(laid), dtype=bool)
    while start < len(laid):
        ancestors = _ancestors(laid, start)
        end = min(start + max_tokens - len(ancestors), len(laid))
        if end < len(laid):
            # Of the later half of the places to cut, take the one that repeats the fewest ancestors; if none of them
            # is allowed, the last one that is.
            places = np.flatnonzero(allowed[start + 1 : end + 1]) + start + 1
            later = places[places >= start + (end - start + 1) // 2]
            end = int(later[np.argmin(laid.depth[later])] if len(later) else places[-1])
        tokens = len(ancestors) + end - start
        pairs = int(laid.depth[ancestors].sum() + laid.depth[start:end].sum()) + tokens
        pieces.append(Piece(tree, start, end, tokens, pairs))
        start = end
    return pieces


def _ancestors(laid: Layout | PackedBatch, token: int) -> IntArray:
    """Storage indices of the tokens before ``token`` on its path."""
    return np.flatnonzero(laid.subtree_end[:token] > token)


def schedule(
    layouts: Iterable[Layout | PackedBatch],
    *,
    max_tokens: int,
    num_ranks: int,
    multiple_of: int = 1,
    attention_weight: float,
    whole_runs: bool = False,
) -> Schedule:
    """Distribute trees over ranks and micro-batches.

    Args:
        layouts: of the trees.
        max_tokens: most tokens of a micro-batch.
        num_ranks: data-parallel ranks.
        multiple_of: what the number of micro-batches of a rank must be a multiple of.
        attention_weight: cost of one attended pair relative to one token's other work, see
            ``MegatronActor.attention_weight``; 0 counts tokens alone.
        whole_runs: a tree is cut only where a run begins, see :func:`cut`.

    Raises:
        ValueError: there is no tree, or a trajectory is longer than ``max_tokens``.
    """
    # Smaller pieces lie more evenly on ranks and repeat more ancestors: of some sizes, the one that is done first.
    sizes = [max_tokens // divisor for divisor in (1, 2, 4, 8)]
    pieces: list[list[Piece]] = [[] for _ in sizes]
    for tree, laid in enumerate(layouts):  # one at a time: layouts of long responses take gigabytes
        for of_size, new in zip(pieces, _in_sizes(tree, laid, sizes, attention_weight, whole_runs), strict=True):
            of_size += new
    if not pieces[0]:
        raise ValueError("no tree to schedule: every group was dropped")
    dealt = (_deal(of_size, max_tokens, num_ranks, attention_weight) for of_size in pieces)
    ranks, loads = min(dealt, key=lambda plan: max(plan[1]))
    passes = -(-max(map(len, ranks)) // multiple_of) * multiple_of
    # The first token of a prompt is in no loss. An empty pass would leave the other ranks waiting.
    idle = Piece(tree=0, start=0, end=1, tokens=1, pairs=1)
    for own in ranks:
        while len(own) < passes:
            crowded = max(own, key=len, default=[])
            own.append([crowded.pop()] if len(crowded) > 1 else [idle])
    total = sum(_tokens(microbatch) for own in ranks for microbatch in own)
    return Schedule(
        ranks=ranks,
        balance=sum(loads) / num_ranks / max(loads),
        fill=total / (max_tokens * passes * num_ranks),
    )


def _in_sizes(
    tree: int, laid: Layout | PackedBatch, sizes: Sequence[int], attention_weight: float, whole_runs: bool
) -> Iterator[list[Piece]]:
    """A tree in pieces of about each size, or of the first and largest one where those would repeat too much."""
    max_tokens, path = sizes[0], int(laid.depth.max()) + 1
    large = cut(tree, laid, max_tokens, whole_runs=whole_runs)
    allowed = _MOST_REPEATED * sum(_cost(piece, attention_weight) for piece in large)
    for size in sizes:
        fits = max(size, path)
        small = large if fits >= max_tokens else cut(tree, laid, fits, whole_runs=whole_runs)
        yield small if sum(_cost(piece, attention_weight) for piece in small) <= allowed else large


def _cost(piece: Piece, attention_weight: float) -> float:
    return piece.tokens + attention_weight * piece.pairs


def _deal(
    pieces: Sequence[Piece], max_tokens: int, num_ranks: int, attention_weight: float
) -> tuple[list[list[list[Piece]]], list[float]]:
    """Pieces on the ranks, and the cost of each rank."""
    costs = [_cost(piece, attention_weight) for piece in pieces]
    loads = [0.0] * num_ranks
    ranks: list[list[list[Piece]]] = [[] for _ in range(num_ranks)]
    for i in sorted(range(len(pieces)), key=lambda i: -costs[i]):
        rank = loads.index(min(loads))
        loads[rank] += costs[i]
        room = (own for own in ranks[rank] if _tokens(own) + pieces[i].tokens <= max_tokens)
        home = next(room, None)
        if home is None:
            ranks[rank].append([pieces[i]])
        else:
            home.append(pieces[i])
    return ranks, loads


def _tokens(pieces: Sequence[Piece]) -> int:
    return sum(piece.tokens for piece in pieces)


def pack_microbatches(
    microbatches: Sequence[Sequence[Piece]],
    trees: Sequence[Tree],
    credits: Sequence[Credit],
    version: int | None = None,
) -> list[PackedBatch]:
    """Pack the micro-batches of one rank; no other tree is packed.

    Args:
        microbatches: of this rank, from a schedule.
        trees, credits: those that were scheduled, in that order.
        version: see :func:`nemo_ibtpo.tree.packing.pack_tree`.
    """
    needed = {piece.tree for pieces in microbatches for piece in pieces}
    packed = {index: pack_tree(trees[index], credits[index], version) for index in needed}
    return [assemble(pieces, packed) for pieces in microbatches]


def assemble(pieces: Sequence[Piece], packed: Mapping[int, PackedBatch]) -> PackedBatch:
    """One micro-batch from its pieces and the packed trees that they are of."""
    return concat([_cut_out(piece, packed[piece.tree]) for piece in pieces])


def _cut_out(piece: Piece, tree: PackedBatch) -> PackedBatch:
    if piece.tokens == len(tree):
        return tree
    body = np.arange(piece.start, piece.end)
    return take(tree, np.concatenate((_ancestors(tree, piece.start), body)), body)
