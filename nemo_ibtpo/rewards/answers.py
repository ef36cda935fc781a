"""The one answer format: the last ``\\boxed{...}`` of a response."""

from __future__ import annotations

import re

# Longer answers count as none. The longest gold answer of reasoning-gym's tasks has about 4,000 characters.
MAX_ANSWER_CHARS = 16_384

_OPENING = "\\boxed{"
_DIGIT_SEPARATOR = re.compile(r"\d_\d", re.ASCII)


def extract_boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}``, or None if there is no complete, non-empty one of sane length.

    Braces nest; a brace after a backslash is a character of the answer. If the last box was never closed there
    is no answer, even if an earlier one was: the response was about to change it.
    """
    start = text.rfind(_OPENING)
    if start < 0:
        return None
    start += len(_OPENING)
    depth = 1
    position = start
    end = min(len(text), start + MAX_ANSWER_CHARS + 1)
    while position < end:
        match text[position]:
            case "\\":
                position += 1  # whatever follows is escaped
            case "{":
                depth += 1
            case "}":
                depth -= 1
                if depth == 0:
                    return text[start:position].strip() or None
        position += 1
    return None


def has_lookalike_number(answer: str, gold: str) -> bool:
    """Whether an answer spells a number in a way that Python's ``int`` and ``float`` accept and the gold answer does
    not use: other scripts' digits (``int("１２") == 12``), or underscores between digits (``int("1_2") == 12``).

    A verifier that converts texts to numbers would take it for right; declared: it is no answer.
    """
    foreign = any(not char.isascii() and char.isnumeric() and char not in gold for char in answer)
    return foreign or (_DIGIT_SEPARATOR.search(answer) is not None and _DIGIT_SEPARATOR.search(gold) is None)
