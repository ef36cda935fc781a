"""A stop string that is missed lets a response run into the next problem; one seen too early cuts an answer off.

Token sequences are written by hand here; that the engine asks at each step is tested with the engine. Tokenizers that
drop or merge spaces (sentencepiece) are not exercised, only byte-level ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from transformers import PreTrainedTokenizerFast

from nemo_ibtpo.rollout.embedded.running_batch import RunningBatch
from nemo_ibtpo.rollout.embedded.stopping import StopRules
from nemo_ibtpo.rollout.engine import SamplingParams
from nemo_ibtpo.tree.rollouts import RolloutRequest

Ids = Callable[..., list[int]]


def end_of(
    tokenizer: PreTrainedTokenizerFast,
    prefix: list[int],
    tokens: list[int],
    *,
    stop: tuple[str, ...] = (),
    eos: tuple[int, ...] = (),
    limit: int = 50,
) -> tuple[int, str] | None:
    """Feed tokens one at a time; the number of them it takes to end, and why."""
    batch = RunningBatch(rows=3, max_length=64)
    rules = StopRules(SamplingParams(stop=stop, eos_token_ids=eos), tokenizer, vocab_size=61)
    batch.add(RolloutRequest("other", (1, 1, 1), 40, seed=0))
    row = batch.add(RolloutRequest("r", tuple(prefix), limit, seed=0))
    for n, token in enumerate(tokens, 1):
        batch.append(np.array([2, token]), np.array([-1.0, -1.0], dtype=np.float32), None)
        reasons = rules.finished_rows(batch)
        assert set(reasons) <= {row}, "the other row must go on"
        if reasons:
            return n, reasons[row]
    return None


def test_stop_string_in_one_token(tokenizer: PreTrainedTokenizerFast, ids: Ids) -> None:
    assert end_of(tokenizer, ids("a"), ids("c", "ab", "d"), stop=("ab",)) == (2, "stop")


def test_stop_string_across_token_borders(tokenizer: PreTrainedTokenizerFast, ids: Ids) -> None:
    assert end_of(tokenizer, ids("a"), ids("x", "c", "ab", "Ġthe", "Ċ"), stop=("cab the\n",)) == (5, "stop")


def test_token_that_goes_beyond_the_stop_string(tokenizer: PreTrainedTokenizerFast, ids: Ids) -> None:
    assert end_of(tokenizer, ids("a"), ids("x", "c", "ab", "d"), stop=("ca",)) == (3, "stop")
    assert end_of(tokenizer, ids("a"), ids("x", ".Ċ", "d"), stop=("x.",)) == (2, "stop")


def test_stop_string_that_ends_in_a_character_of_several_tokens(tokenizer: PreTrainedTokenizerFast, ids: Ids) -> None:
    assert end_of(tokenizer, ids("a"), ids("c", "a", "f", "Ã", "©", "d"), stop=("café",)) == (5, "stop")


def test_the_earliest_of_several_stop_strings(tokenizer: PreTrainedTokenizerFast, ids: Ids) -> None:
    assert end_of(tokenizer, ids("a"), ids("b", "c", "d", "e"), stop=("de", "bc")) == (2, "stop")


def test_text_of_the_prefix_does_not_count(tokenizer: PreTrainedTokenizerFast, ids: Ids) -> None:
    assert end_of(tokenizer, ids("x", "y"), ids("z", "y"), stop=("xy", "yz")) is None


def test_first_token_keeps_its_space(tokenizer: PreTrainedTokenizerFast, ids: Ids) -> None:
    assert end_of(tokenizer, ids("x"), ids("Ġthe", "y"), stop=(" the",)) == (1, "stop")


def test_ids_without_text_are_looked_through(tokenizer: PreTrainedTokenizerFast, ids: Ids) -> None:
    assert end_of(tokenizer, [1], [60, 60], stop=("a",)) is None
    assert end_of(tokenizer, [1], [*ids("x", "y"), 60, 60, 60, *ids("z")], stop=("xyz",)) == (6, "stop")


def test_end_of_sequence_and_length(tokenizer: PreTrainedTokenizerFast, ids: Ids) -> None:
    eos = ids("<eos>")[0]
    assert end_of(tokenizer, [1], [5, eos, 5], eos=(eos, 7)) == (2, "eos")
    assert end_of(tokenizer, [1], [5, 7, 5], eos=(eos, 7)) == (2, "eos")
    assert end_of(tokenizer, [1], [5, 6, 5], eos=(eos,), limit=3) == (3, "length")


def test_precedence_on_the_last_token(tokenizer: PreTrainedTokenizerFast, ids: Ids) -> None:
    assert end_of(tokenizer, [1], ids("b", "c"), stop=("c",), eos=tuple(ids("c")), limit=2) == (2, "eos")
    assert end_of(tokenizer, [1], ids("b", "c"), stop=("c",), limit=2) == (2, "stop")
