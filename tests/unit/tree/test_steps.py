"""A step boundary that depends on more than the step would keep equal steps from merging.

Run with real byte-level and byte-fallback tokenizers (no download: their vocabularies are written here), whose
tokens split characters and blank lines in every way. Not exercised: the tokenizers of published models.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from nemo_ibtpo.tree.steps import SEPARATOR, StepSplitter


def byte_level_tokenizer() -> Tokenizer:
    """GPT-2 style: every byte, and tokens with line feeds at the end, in the middle and at the start."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    line_feed, space = "Ċ", "Ġ"
    merges = [
        (line_feed, line_feed),
        (line_feed * 2, line_feed),
        (".", line_feed * 2),
        (line_feed * 2, "a"),
        ("b", line_feed * 2 + "a"),
        (space, line_feed),
        ("ä", "½"),  # the first two bytes of a Chinese character, which has three
    ]
    vocabulary = {text: i for i, text in enumerate(alphabet + [a + b for a, b in merges])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """Llama-2 style: single bytes as ``<0x0A>``, a word marker that is stripped at the start."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "▁a", "b", "\n", "\n\n", ".\n\n"]
    tokenizer = Tokenizer(BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


TOKENIZERS = {"byte_level": byte_level_tokenizer(), "byte_fallback": byte_fallback_tokenizer()}


def ids(*texts: str) -> list[int]:
    """One byte-level token per text."""
    to_id = TOKENIZERS["byte_level"].token_to_id
    return [to_id(text.replace("\n", "Ċ").replace(" ", "Ġ")) for text in texts]


@pytest.mark.parametrize(
    "steps",
    [
        [["a", "\n\n"], ["b"]],
        [["a", "\n", "\n"], ["b", "\n", "a"]],  # a blank line of two tokens; one line feed is none
        [["a", ".\n\n"], ["b"]],
        [["b\n\na"], ["a"]],  # in the middle of a token: the step ends after it
        [["a", "\n\n\n"], ["b"]],  # three in one token
        [["a", "\n\n"], ["\n", "b", "\n\n"], ["a"]],  # a third one belongs to the next step
        [["a", "\n\n"], ["\n\n", "\n\n", "b", "\n\n"], ["a"]],  # a run of blank lines makes no step
        [["\n\n", "a", "\n\n"], ["b"]],  # a response that starts blank
        [["\n\na", "b", "\n\n"], ["a"]],  # blank before text, in one token
        [["\n\n", "\n\n", "\n\n"]],  # nothing but blanks: one step, since a step has tokens
        [["a", " \n", "\n"], ["b"]],  # a space before the line feeds does not matter
        [["a", "\n", " \n"]],  # a space between them does: that line is not empty
        [["a", "\n\n", "\n\n"]],  # a last step without visible text belongs to the one before it
        [["a", "\n\n", "<|end|>"]],
        [["a", "\n\n"], ["b", "\n\n", "\n", "<|end|>"]],
        [["<|end|>"]],  # alone
        [["a", "\n\n"], ["b", "<|end|>"]],
        [["a", "\n\n"]],
        [["ä½", "ł", "\n\n"], ["ä", "½", "ł"]],  # characters that only decode together
        [["ä", "\n", "\n"], ["ä½", "b"]],  # broken ones
        [["a", "<|end|>"]],
        [],
    ],
)
def test_steps_by_hand(steps: list[list[str]]) -> None:
    tokens = [token for step in steps for token in ids(*step)]
    assert None not in tokens
    split = StepSplitter(TOKENIZERS["byte_level"]).split(tokens)
    assert [tokens[piece] for piece in split] == [ids(*step) for step in steps]


def token_lists(name: str) -> st.SearchStrategy[list[int]]:
    """Token ids, half of them with line feeds.

    Without broken characters under byte fallback: its decoder blots out the whole run of bytes that holds one, line
    feeds included, so that the text says nothing. The splitter goes by the bytes.
    """
    tokenizer = TOKENIZERS[name]
    usable = [i for i in range(tokenizer.get_vocab_size()) if name != "byte_fallback" or not 128 <= i < 256]
    blank = [i for i in usable if "\n" in tokenizer.decode([i], skip_special_tokens=False)]
    assert len(blank) >= 3
    return st.lists(st.one_of(st.sampled_from(blank), st.sampled_from(usable)), max_size=30)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_boundaries_lie_where_the_decoded_text_says(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    splitter = StepSplitter(tokenizer)

    def visible(token: int) -> bool:
        return bool(tokenizer.decode([token], skip_special_tokens=True).strip())

    def complete(step: list[int]) -> bool:
        return SEPARATOR in tokenizer.decode(step, skip_special_tokens=False).lstrip()

    @given(token_lists(name))
    def check(tokens: list[int]) -> None:
        split = splitter.split(tokens)
        steps = [tokens[piece] for piece in split]
        assert [token for step in steps for token in step] == tokens
        assert all(steps)
        assert all(complete(step) for step in steps[:-1])
        assert not any(complete(step[:-1]) for step in steps[:-1])
        if steps:  # the last one goes on behind its blank line only with what cannot be seen
            whole = next((end for end in range(len(steps[-1])) if complete(steps[-1][:end])), len(steps[-1]))
            assert not any(visible(t) for t in steps[-1][whole:])
            assert len(steps) == 1 or any(visible(t) for t in steps[-1])
        for piece in split:  # a continuation after a step is cut as it was inside the whole
            rest = [tokens[piece.stop :][later] for later in splitter.split(tokens[piece.stop :])]
            assert rest == steps[split.index(piece) + 1 :]

    check()


def test_each_token_is_decoded_once() -> None:
    decoded: Counter[int] = Counter()

    class Counting:
        def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
            decoded.update(token_ids)
            return TOKENIZERS["byte_level"].decode(token_ids, skip_special_tokens=skip_special_tokens)

    splitter = StepSplitter(Counting())
    tokens = ids("a", "\n\n", "b", "\n") * 5_000
    assert len(splitter.split(tokens)) == 5_001
    splitter.split(tokens)
    # Alone and twice in a row, once in its life; the last step's last token once more, to see whether it is visible.
    assert decoded == Counter(dict.fromkeys(tokens, 3)) + Counter(ids("b"))
