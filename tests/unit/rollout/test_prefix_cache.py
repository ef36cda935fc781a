"""A wrong segment in the prefix cache gives plausible text under wrong log-probabilities: nothing else would notice.

The cache is compared with the definition of a longest common prefix over random insertions. Each token's "keys and
values" are a function of the whole prefix before it, so that a segment taken from another path is seen.
"""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_ibtpo.rollout.embedded.prefix_cache import PrefixCache

Tokens = tuple[int, ...]
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=0, max_size=10).map(tuple), max_size=25)


def kv_of(tokens: Tokens) -> torch.Tensor:
    """[1 layer, 2, 1 head, n, 1]; every entry names the whole path up to its token."""
    paths = [hash(tokens[: i + 1]) % 100_003 for i in range(len(tokens))]
    return torch.tensor(paths, dtype=torch.float64).expand(1, 2, 1, -1)[..., None]


def matched(cache: PrefixCache, tokens: Tokens) -> torch.Tensor:
    return torch.cat([kv_of(()), *cache.match(tokens)], dim=-2)


def common(a: Tokens, b: Tokens) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def unique_tokens(sequences: list[Tokens]) -> int:
    return len({s[: i + 1] for s in sequences for i in range(len(s))})


@given(SEQUENCES, SEQUENCES)
def test_finds_the_longest_known_prefix(inserted: list[Tokens], asked: list[Tokens]) -> None:
    cache = PrefixCache(capacity=10_000)
    for tokens in inserted:
        cache.insert(tokens, kv_of(tokens))
    assert cache.held_tokens == unique_tokens(inserted)
    for tokens in asked:
        length = max((common(tokens, other) for other in inserted), default=0)
        assert torch.equal(matched(cache, tokens), kv_of(tokens[:length]))


@given(SEQUENCES, st.integers(0, 25))
def test_never_exceeds_its_capacity_and_never_answers_wrongly(inserted: list[Tokens], capacity: int) -> None:
    cache = PrefixCache(capacity)
    for step, tokens in enumerate(inserted):
        cache.insert(tokens, kv_of(tokens))
        assert cache.held_tokens <= capacity
        if len(tokens) <= capacity:
            assert torch.equal(matched(cache, tokens), kv_of(tokens)), "the newest sequence must be there"
        for other in inserted[: step + 1 : 3]:
            found = matched(cache, other)
            assert torch.equal(found, kv_of(other[: found.shape[-2]]))


def test_evicts_what_was_used_least_recently() -> None:
    cache = PrefixCache(capacity=6)
    for tokens in [(0, 1, 2), (3, 4, 5)]:
        cache.insert(tokens, kv_of(tokens))
    cache.match((0, 1, 2))
    cache.insert((6, 7), kv_of((6, 7)))
    assert matched(cache, (0, 1, 2)).shape[-2] == 3
    assert matched(cache, (3, 4, 5)).shape[-2] == 0


def test_a_shared_prefix_outlives_its_branches() -> None:
    cache = PrefixCache(capacity=6)
    cache.insert((0, 1, 2, 3), kv_of((0, 1, 2, 3)))
    cache.insert((0, 1, 4, 5), kv_of((0, 1, 4, 5)))
    cache.insert((0, 1, 6), kv_of((0, 1, 6)))
    assert matched(cache, (0, 1, 2, 3)).shape[-2] == 2
    assert matched(cache, (0, 1, 4, 5)).shape[-2] == 4


def test_a_match_stays_valid_after_eviction() -> None:
    cache = PrefixCache(capacity=3)
    cache.insert((0, 1, 2), kv_of((0, 1, 2)))
    segments = cache.match((0, 1, 2))
    cache.insert((5, 5, 5), kv_of((5, 5, 5)))
    assert torch.equal(torch.cat(segments, dim=-2), kv_of((0, 1, 2)))


def test_evicting_a_branch_frees_its_memory() -> None:
    cache = PrefixCache(capacity=100)
    cache.insert((0, 1, 2, 3), kv_of((0, 1, 2, 3)))
    cache.insert((0, 9), kv_of((0, 9)))
    for segment in cache.match((0, 1, 2, 3)):
        assert segment.untyped_storage().nbytes() == segment.numel() * segment.element_size()


def test_clear_forgets_everything() -> None:
    cache = PrefixCache(capacity=10)
    cache.insert((0, 1), kv_of((0, 1)))
    cache.clear()
    assert cache.match((0, 1)) == [] and cache.held_tokens == 0
