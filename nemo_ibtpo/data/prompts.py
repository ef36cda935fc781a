"""From a question, or from chat messages, to prompt tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.data.rows import UnusableRowError

_PLACEHOLDER = "{question}"
_ROLES = ("system", "user", "assistant", "tool", "developer")

Question = str | list[dict[str, str]]


class PromptSettings(Protocol):
    """How a question becomes a prompt; ``DataConfig`` and ``BenchmarkConfig`` have it, and say what it means."""

    @property
    def template(self) -> str: ...
    @property
    def prompt_format(self) -> str: ...
    @property
    def system_prompt(self) -> str | None: ...
    @property
    def template_options(self) -> Mapping[str, Any]: ...
    @property
    def max_prompt_tokens(self) -> int: ...


class PromptTemplate:
    """Fills the prompt format and tokenises the result.

    ``chat`` renders the tokenizer's chat template, which writes its own special tokens: system message, one user
    message, generation prompt; or the row's own messages, the last user message put into the prompt format. If the
    last message is the assistant's, the response continues it. ``plain`` tokenises the filled format as any text,
    with the special tokens that the tokenizer puts before a text; ``none`` takes a text that holds its special tokens
    already.

    Args:
        config: template, prompt_format, system_prompt, template_options.
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
        if config.template != "chat" and config.system_prompt is not None:
            raise UserError(f"template={config.template} does not use system_prompt; put its text into prompt_format")
        self._config = config
        self._tokenizer = tokenizer
        if config.template == "chat":
            self._render(self._messages(""))  # a template that refuses a system message does so here, once

    def __call__(self, question: Question) -> tuple[int, ...]:
        """Token ids of the prompt for a question, or for chat messages.

        Raises:
            UnusableRowError: chat messages that the template does not take.
        """
        if self._config.template in ("chat", "none"):
            token_ids = self._tokenizer(self.text(question), add_special_tokens=False).input_ids
        else:
            token_ids = self._tokenizer(self.text(question)).input_ids
            if token_ids and token_ids[-1] == self._tokenizer.eos_token_id:
                raise UserError("template=plain, but the tokenizer ends every text with its end-of-sequence token")
        return tuple(token_ids)

    def text(self, question: Question) -> str:
        """The prompt as text, without what the tokenizer adds.

        Raises:
            UnusableRowError: chat messages that the template does not take.
        """
        if self._config.template == "chat":
            return self._render(self._messages(question))
        if not isinstance(question, str):
            raise UnusableRowError(f"chat messages, which template={self._config.template} does not take; use chat")
        return self._filled(question)

    def notes(self) -> list[str]:
        """What one may want to know of the prompts."""
        bos = self._tokenizer.bos_token
        if self._config.template == "chat" and bos and bos not in self.text("x"):
            return [f"prompts do not begin with {bos}: the chat template, as transformers applies it, writes none"]
        return []

    def _filled(self, text: str) -> str:
        # The filled text is data: str.format would trip over its braces.
        return self._config.prompt_format.replace(_PLACEHOLDER, text)

    def _messages(self, question: Question) -> list[dict[str, str]]:
        system = self._config.system_prompt
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
        last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last is None:
            raise UnusableRowError("chat messages without one of the user")
        messages[last] = messages[last] | {"content": self._filled(messages[last]["content"])}
        if system is not None:
            if any(message["role"] == "system" for message in messages):
                raise UnusableRowError("chat messages with a system message, beside system_prompt")
            messages.insert(0, {"role": "system", "content": system})
        return messages

    def _render(self, messages: Sequence[dict[str, str]]) -> str:
        prefilled = messages[-1]["role"] == "assistant"
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=not prefilled,
                continue_final_message=prefilled,
                **self._config.template_options,
            )
        except Exception as error:  # whatever the template's Jinja code raises
            raise UserError(f"the tokenizer's chat template refuses the prompt: {error}") from error
        return text


def chat_messages(value: Any) -> list[dict[str, str]]:
    """The messages of a row's column.

    Raises:
        UnusableRowError: they are no list of role and content.
    """
    messages = []
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise UnusableRowError("a chat message is no mapping of role and content")
        role, content = message["role"], message["content"]
        if isinstance(content, list):  # parts, as OpenAI's format has them
            if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
                raise UnusableRowError("a chat message with something else than text")
            content = "".join(str(part.get("text", "")) for part in content)
        if role not in _ROLES or not isinstance(content, str):
            raise UnusableRowError(f"a chat message of role {role!r} with content {type(content).__name__}")
        messages.append({"role": str(role), "content": content})
    if not messages:
        raise UnusableRowError("no chat messages")
    return messages


def as_question(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as one text: that of a single user message, else each with its role."""
    if len(messages) == 1:
        return messages[0]["content"].strip()
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages).strip()
