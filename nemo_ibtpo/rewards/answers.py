"""The one answer format: the last ``\\boxed{...}`` of a response."""

from __future__ import annotations

# Longer answers count as none. The longest gold answer of reasoning-gym's tasks has about 4,000 characters.
MAX_ANSWER_CHARS = 16_384

_OPENING = "\\boxed{"


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
