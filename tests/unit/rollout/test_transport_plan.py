"""Who brings which part of the weights to which host.

Why it matters: all ranks of a host share the copying, and a network carries a part once for a host. That the weights
arrive, on one host and on several, is tests/distributed/test_parity.py; that as few bytes are moved, test_refit.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from nemo_ibtpo.rollout.transport.moves import Part, cut_into_buckets, plan_moves, traffic

# Two hosts of four ranks: TP2 x PP2, twice; and every part 8 bytes.
STAGES = [{Part("first", part), Part("second", part)} for part in (0, 1)]
LATER = [{Part("third", part), Part("norm", 0)} for part in (0, 1)]
SIZES = {
    Part(name, part): 8
    for name in ("first", "second", "third", "norm")
    for part in ((0,) if name == "norm" else (0, 1))
}


def test_a_host_that_has_all_parts_needs_no_network_and_its_ranks_share_the_work() -> None:
    holders = [*STAGES, *LATER] * 2
    hosts = [0] * 4 + [1] * 4
    moves = plan_moves(SIZES, holders, hosts, targets=[0, 1])
    assert all(move.source == move.writer and move.part in holders[move.source] for move in moves)
    assert Counter((move.part, hosts[move.writer]) for move in moves) == Counter(
        (part, host) for part in SIZES for host in (0, 1)
    )
    on_one_host = plan_moves(SIZES, holders, [0] * 8, targets=[0])
    written = Counter(move.writer for move in on_one_host)
    assert max(written.values()) == 1, written  # seven parts, eight ranks


def test_what_a_host_lacks_comes_once_over_the_network() -> None:
    # The stages of the pipeline are on different hosts.
    holders, hosts = [*STAGES, *STAGES, *LATER, *LATER], [0] * 4 + [1] * 4
    moves = plan_moves(SIZES, holders, hosts, targets=[0])
    sent = [move for move in moves if move.source != move.writer]
    assert [move.part for move in sent] == [Part("third", 0), Part("third", 1), Part("norm", 0)]
    assert all(hosts[move.source] == 1 and hosts[move.writer] == 0 for move in sent)
    assert len({move.source for move in sent}) == 3  # in turn
    cost = traffic(moves)
    assert cost.network == 24 == sum(cost.received.values())
    assert sum(cost.written.values()) == 56
    assert max(cost.written.values()) - min(cost.written.get(rank, 0) for rank in range(4)) <= 8


def test_no_rank_has_more_than_a_bucket_to_do() -> None:
    holders, hosts = [*STAGES, *STAGES, *LATER, *LATER], [0] * 4 + [1] * 4
    moves = plan_moves(SIZES, holders, hosts, targets=[0, 1])
    for limit in (8, 16, 24):
        buckets = list(cut_into_buckets(moves, limit))
        assert [move for bucket in buckets for move in bucket] == moves
        for bucket in buckets:
            load = Counter(rank for move in bucket for rank in {move.source, move.writer})
            assert max(load.values()) * 8 <= limit
    assert len(list(cut_into_buckets(moves, 1))) == len(moves), "a part that is larger is a bucket of its own"


def test_counting_needs_no_torch() -> None:
    program = "import sys, nemo_ibtpo.rollout.transport.moves; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
