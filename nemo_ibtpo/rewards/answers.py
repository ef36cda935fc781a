"""The one answer format: the last ``\\boxed{...}`` of a response."""

from __future__ import annotations

import re

# Longer answers count as none. The longest gold answer of reasoning-gym's tasks has about 4,000 characters.
MAX_ANSWER_CHARS = 16_384

_OPENING = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])")
_BRACE = re.compile(r"\s*\{")
# What a box without braces holds: one word that begins as mathematics does. Other words are prose about boxes.
_BARE = re.compile(r"\s*(?:\$\s*)?((?:[+-]?[\d.]|\\[A-Za-z{])[^\s$]*?)[.,;:]?(?=[\s$]|$)")
_DIGIT_SEPARATOR = re.compile(r"\d_\d", re.ASCII)


def extract_boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}``, or None if there is no complete, non-empty one of sane length.

    ``\\boxed {5}``, ``\\boxed 5`` and ``\\fbox{5}`` are boxes, too. Braces nest; a brace after a backslash is a
    character of the answer. If the last box was never closed there is no answer, even if an earlier one was: the
    response was about to change it.
    """
    for opening in reversed(list(_OPENING.finditer(text))):
        if brace := _BRACE.match(text, opening.end()):
            return _until_closed(text, brace.end())
        if bare := _BARE.match(text, opening.end(), opening.end() + MAX_ANSWER_CHARS):
            return bare[1]
    return None


def _until_closed(text: str, start: int) -> str | None:
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
