"""Who copies which shard to which host.

Why it matters: all ranks of a host share the copying, and a network carries a shard once. That the weights arrive,
on one host and on several, is tests/distributed/test_parity.py.
"""

from __future__ import annotations

from collections import Counter

from nemo_ibtpo.megatron.host_weights import Shard, plan_moves

# Two hosts of four ranks: TP2 x PP2, twice; and every shard 8 bytes.
STAGES = [{Shard("first", part), Shard("second", part)} for part in (0, 1)]
LATER = [{Shard("third", part), Shard("norm", 0)} for part in (0, 1)]
SIZES = {
    Shard(name, part): 8
    for name in ("first", "second", "third", "norm")
    for part in ((0,) if name == "norm" else (0, 1))
}


def test_a_host_that_has_all_shards_needs_no_network_and_its_ranks_share_the_work() -> None:
    holders = [*STAGES, *LATER] * 2
    hosts = [0] * 4 + [1] * 4
    moves = plan_moves(SIZES, holders, hosts, targets=[0, 1])
    assert all(move.source == move.writer and move.shard in holders[move.source] for move in moves)
    assert Counter((move.shard, hosts[move.writer]) for move in moves) == Counter(
        (shard, host) for shard in SIZES for host in (0, 1)
    )
    on_one_host = plan_moves(SIZES, holders, [0] * 8, targets=[0])
    written = Counter(move.writer for move in on_one_host)
    assert max(written.values()) == 1, written  # seven shards, eight ranks


def test_what_a_host_lacks_comes_once_over_the_network() -> None:
    # The stages of the pipeline are on different hosts.
    holders, hosts = [*STAGES, *STAGES, *LATER, *LATER], [0] * 4 + [1] * 4
    moves = plan_moves(SIZES, holders, hosts, targets=[0])
    sent = [move for move in moves if move.source != move.writer]
    assert [move.shard for move in sent] == [Shard("third", 0), Shard("third", 1), Shard("norm", 0)]
    assert all(hosts[move.source] == 1 and hosts[move.writer] == 0 for move in sent)
    assert len({move.source for move in sent}) == 3  # in turn
