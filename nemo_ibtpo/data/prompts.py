"""From a question to prompt tokens."""

from __future__ import annotations

from typing import Any, Protocol

from nemo_ibtpo.config.errors import UserError

_PLACEHOLDER = "{question}"


class PromptSettings(Protocol):
    """How a question becomes a prompt; ``DataConfig`` and ``BenchmarkConfig`` have it, and say what it means."""

    @property
    def template(self) -> str: ...
    @property
    def prompt_format(self) -> str: ...
    @property
    def system_prompt(self) -> str | None: ...
    @property
    def max_prompt_tokens(self) -> int: ...


class PromptTemplate:
    """Fills the prompt format and tokenises the result.

    ``chat`` renders the tokenizer's chat template (system message, one user message, generation prompt), which
    writes its own special tokens; ``plain`` tokenises the filled format as any text, with the special tokens
    that the tokenizer puts before a text.

    Args:
        config: template, prompt_format, system_prompt.
        tokenizer: a Hugging Face tokenizer.

    Raises:
        UserError: the format has no or several placeholders, the tokenizer no chat template, or a system prompt
            was given to a template that does not use it.
    """

    def __init__(self, config: PromptSettings, tokenizer: Any) -> None:
        if (count := config.prompt_format.count(_PLACEHOLDER)) != 1:
            raise UserError(
                f"prompt_format must hold {_PLACEHOLDER} exactly once, it holds it {count} times: "
                f"{config.prompt_format!r}"
            )
        if config.template == "chat" and not tokenizer.chat_template:
            raise UserError("template=chat, but the tokenizer has no chat template; use template=plain")
        if config.template == "plain" and config.system_prompt is not None:
            raise UserError("template=plain does not use system_prompt; put its text into prompt_format")
        self._config = config
        self._tokenizer = tokenizer
        if config.template == "chat":
            self._render("")  # a template that refuses a system message does so here, once

    def __call__(self, question: str) -> tuple[int, ...]:
        """Token ids of the prompt for ``question``."""
        # The filled text is data: str.format would trip over its braces.
        text = self._config.prompt_format.replace(_PLACEHOLDER, question)
        if self._config.template == "chat":
            token_ids = self._tokenizer(self._render(text), add_special_tokens=False).input_ids
        else:
            token_ids = self._tokenizer(text).input_ids
            if token_ids and token_ids[-1] == self._tokenizer.eos_token_id:
                raise UserError("template=plain, but the tokenizer ends every text with its end-of-sequence token")
        return tuple(token_ids)

    def _render(self, text: str) -> str:
        messages = [{"role": "user", "content": text}]
        if self._config.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self._config.system_prompt})
        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # whatever the template's Jinja code raises
            raise UserError(f"the tokenizer's chat template refuses the prompt: {error}") from error
