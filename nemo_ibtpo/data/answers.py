"""The gold answer of a row: text, a number, several accepted answers, or what a solution ends with."""

from __future__ import annotations

import contextlib
import json
import math
import re
from decimal import Decimal
from typing import Any

from nemo_ibtpo.data.rows import UnusableRowError

_HASHES = re.compile(r"####\s*(.+?)\s*$", re.MULTILINE)
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")


def gold_answers(value: Any, answer_from: str | None) -> list[str]:
    """The accepted answers of a row, the first of which is shown.

    Args:
        value: of the answer's column; a list holds answers that are all accepted.
        answer_from: where in a text the answer stands (``DatasetConfig.answer_from``).

    Raises:
        UnusableRowError: there is none.
    """
    if isinstance(value, str) and value.lstrip().startswith('["'):  # a list that a table keeps as text
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise UnusableRowError("empty answer")
    return [_extracted(text_of(each, "answer"), answer_from) for each in values]


def text_of(value: Any, what: str) -> str:
    """The text of a question or an answer; numbers are written as a person would, 0.00001 and not 1e-05.

    Raises:
        UnusableRowError: it is no text, or empty.
    """
    if isinstance(value, float) and math.isfinite(value):
        value = str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UnusableRowError(f"empty {what}")
    if not isinstance(value, str):
        raise UnusableRowError(f"{what} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
        raise UnusableRowError(f"{what} is not valid Unicode") from None
    return value.strip()


def _extracted(text: str, answer_from: str | None) -> str:
    match answer_from:
        case None:
            if "\n" in text and _HASHES.search(text):
                raise UnusableRowError("answer is a solution that ends with ####; set answer_from=hashes")
            return text
        case "hashes":
            found = _HASHES.findall(text)
        case "boxed":
            found = [box for box in [_last_box(text)] if box]
        case pattern:
            found = [match[1] for match in re.finditer(pattern, text)]
    if not found:
        raise UnusableRowError(f"no answer where answer_from={answer_from} looks for it")
    return str(found[-1]).strip()


def _last_box(text: str) -> str | None:
    if not (openings := list(_BOX.finditer(text))):
        return None
    depth, start = 1, openings[-1].end()
    for token in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return text[start : token.start()].strip()
    return None
