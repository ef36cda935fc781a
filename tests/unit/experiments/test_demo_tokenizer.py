"""The demo's tokenizer must load with AutoTokenizer as the same tokenizer, and cut solutions into steps.

Texts come from the solver itself. Not exercised: tokenizers of other models.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nemo_ibtpo.experiments.base_models.solutions import Habits, write_solution
from nemo_ibtpo.experiments.base_models.tokenizer import EOS, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    rng = random.Random(0)
    texts = []
    for _ in range(400):
        expression = " + ".join(str(rng.randint(0, 10)) for _ in range(rng.randint(3, 6)))
        texts += [f"Calculate {expression}.", write_solution(expression, Habits(0.4, 0.5, 0.0), rng)]
    return make_tokenizer(texts)


def tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer(text).input_ids]


def test_words_digits_operators_and_blank_lines_are_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokens(tokenizer, "Calculate 3 + 10.\n") == ["Calculate", " ", "3", " + ", "1", "0", ".", "\n"]
    assert tokens(tokenizer, "3 + 7 = 10\n\n\\boxed{10}") == (
        ["3", " + ", "7", " = ", "1", "0", "\n\n", "\\boxed{", "1", "0", "}"]
    )


@given(text=st.text(max_size=40))
def test_any_text_survives_a_round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    if EOS in text or "<|pad|>" in text:
        return
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=False) == text


def test_auto_tokenizer_loads_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    # Beside a Qwen3 configuration AutoTokenizer might take Qwen's own tokenizer class instead.
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "Calculate 3 + 10.\n3 + 10 = 13\n\n\\boxed{13}<|endoftext|> é\t日本"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == text
    assert (len(loaded), loaded.eos_token, loaded.pad_token) == (len(tokenizer), EOS, "<|pad|>")
    assert loaded(text).input_ids[-11:].count(loaded.eos_token_id) == 1


def test_the_vocabulary_is_small(tokenizer: PreTrainedTokenizerFast) -> None:
    assert 258 < len(tokenizer) < 320  # bytes, two special tokens, and the words of the problems
