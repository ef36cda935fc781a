"""Whether a response has the form that was asked for."""

from __future__ import annotations

import re

from nemo_ibtpo.rewards.answers import extract_boxed

_THINKING = re.compile(r"\s*<think>(?:(?!</?think>).)+</think>(?:(?!</?think>).)+", re.DOTALL)


def boxed(response: str) -> float:
    """1 if the response ends in a complete box."""
    return float(extract_boxed(response) is not None)


def thinks_then_answers(response: str) -> float:
    """1 if the response is one ``<think>...</think>`` block with an answer after it."""
    return float(_THINKING.fullmatch(response) is not None)
