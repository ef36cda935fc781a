"""What the model reads is the template filled with the question, whatever the question holds.

A prompt that differs between training and evaluation, or that braces in a question break, costs accuracy
without a word. Not exercised: the templates of published models.
"""

from __future__ import annotations

from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from data_configs import data_config
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.data.prompts import PromptTemplate

TOKENIZER = byte_tokenizer()


def text_of(prompt_tokens: tuple[int, ...]) -> str:
    return TOKENIZER.decode(list(prompt_tokens), skip_special_tokens=False)


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_plain_puts_any_question_in_its_place(question: str) -> None:
    template = PromptTemplate(data_config(prompt_format="{q} Q: {question} \\boxed{}"), TOKENIZER)
    assert text_of(template(question)) == f"{{q}} Q: {question} \\boxed{{}}"


def test_chat_renders_system_and_user_message_and_asks_for_an_answer() -> None:
    config = data_config(template="chat", system_prompt="Be brief.", prompt_format="{question}!")
    prompt = PromptTemplate(config, TOKENIZER)("Why {x}")
    assert text_of(prompt) == "<system>Be brief.<eos><user>Why {x}!<eos><assistant>"
    assert prompt.count(TOKENIZER.eos_token_id) == 2  # special tokens of the template, not their spelling


def test_chat_without_system_prompt_has_no_system_message() -> None:
    assert text_of(PromptTemplate(data_config(template="chat"), TOKENIZER)("q")) == "<user>q<eos><assistant>"


def test_chat_adds_no_special_tokens_to_those_of_the_template() -> None:
    tokenizer = byte_tokenizer()
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", eos)]
    )
    assert PromptTemplate(data_config(template="chat"), tokenizer)("q")[0] != eos
    assert PromptTemplate(data_config(template="plain"), tokenizer)("q")[0] == eos


def refusal(tokenizer: Any = TOKENIZER, **changes: Any) -> str:
    with pytest.raises(UserError) as error:
        PromptTemplate(data_config(**changes), tokenizer)("q")
    return str(error.value)


@pytest.mark.parametrize("prompt_format", ["no placeholder", "{question} and {question}"])
def test_one_placeholder_and_no_more(prompt_format: str) -> None:
    assert "exactly once" in refusal(prompt_format=prompt_format)


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    assert "use template=plain" in refusal(byte_tokenizer(chat_template=None), template="chat")


def test_a_template_that_refuses_system_messages_is_refused_at_once() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(UserError, match="no system role"):
        PromptTemplate(data_config(template="chat", system_prompt="Be brief."), byte_tokenizer(strict))


def test_a_system_prompt_nobody_would_read_is_refused() -> None:
    assert "does not use system_prompt" in refusal(template="plain", system_prompt="Be brief.")


def test_a_tokenizer_that_ends_texts_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    assert "end-of-sequence" in refusal(tokenizer)
