"""Cutting a response into steps, on the token ids as they were sampled.

A step ends with the first token that completes a blank line (paper: steps are split on ``"\\n\\n"``). Decoded
text is only looked at, never tokenised again. Some baselines work on segments of a fixed width instead. What the
tests hold of blank lines:

- The steps of a response, concatenated, are the response; no step is empty.
- Blank lines at the start of a step belong to it (declared): a run of blank lines makes no steps of its own,
  so every step but perhaps the last has visible text before the blank line that ends it.
- A last step without visible text, as an end-of-sequence token alone behind a blank line, belongs to the step before
  it: nothing is left to be continued there.
- Whether a step ends at a token depends on the tokens of that step up to this one only. Hence a continuation
  sampled after a step is cut as it would have been cut inside the whole response, and equal steps of different
  trajectories merge. Only a continuation that has no visible text at all stays a step of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

SEPARATOR = "\n\n"


class Tokenizer(Protocol):
    """The one method that splitting needs; Hugging Face tokenizers have it."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """Text of the tokens."""


class Splitter(Protocol):
    """Cuts responses into steps; where a step ends depends on the tokens up to there only."""

    def split(self, tokens: Sequence[int]) -> list[slice]:
        """Where each step lies in a whole response, in order; none is empty."""

    def completed(self, tokens: Sequence[int]) -> int:
        """Tokens of the steps that are complete, whatever may follow."""


class FixedWidthSplitter:
    """Steps are segments of so many tokens, counted from the start of the response.

    Args:
        width: tokens of a segment, at least 1; the last one of a response may be shorter.
    """

    def __init__(self, width: int) -> None:
        if width < 1:
            raise ValueError(f"segments of {width} tokens; they need at least one")
        self._width = width

    def split(self, tokens: Sequence[int]) -> list[slice]:
        """See :class:`Splitter`."""
        starts = range(0, len(tokens), self._width)
        return [slice(start, min(start + self._width, len(tokens))) for start in starts]

    def completed(self, tokens: Sequence[int]) -> int:
        """See :class:`Splitter`."""
        return len(tokens) // self._width * self._width


def make_splitter(segment_tokens: int | None, tokenizer: Tokenizer) -> Splitter:
    """Segments of so many tokens, or, for None, steps that end at blank lines."""
    return StepSplitter(tokenizer) if segment_tokens is None else FixedWidthSplitter(segment_tokens)


class StepSplitter:
    """Splits responses of one tokenizer, in time linear in their length.

    Each token is decoded alone, and once in the splitter's life. That is sound although byte-level tokens can
    hold parts of a character: a line feed is one byte in UTF-8 and never part of another character, so it
    shows in the text of its own token whatever the neighbours are.

    Args:
        tokenizer: decodes the token ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text_of: dict[int, str] = {}
        self._visible: dict[int, bool] = {}

    def split(self, tokens: Sequence[int]) -> list[slice]:
        """Where each step lies in ``tokens``, in order; the last one may lack a blank line at its end."""
        ends = self._complete_ends(tokens)
        last = ends[-1] if ends else 0
        if last < len(tokens):
            if ends and not any(map(self._is_visible, tokens[last:])):
                ends.pop()
            ends.append(len(tokens))
        return [slice(start, end) for start, end in pairwise([0, *ends])]

    def completed(self, tokens: Sequence[int]) -> int:
        """See :class:`Splitter`."""
        return max(self._complete_ends(tokens), default=0)

    def _complete_ends(self, tokens: Sequence[int]) -> list[int]:
        """Where the steps end that a blank line ends."""
        ends, text = [], ""  # text: of the step so far, leading blanks dropped, end only
        for position, token in enumerate(tokens):
            text = text[1 - len(SEPARATOR) :] + self._text(token) if text else self._text(token).lstrip()
            if SEPARATOR in text:
                ends.append(position + 1)
                text = ""
        return ends

    def _is_visible(self, token: int) -> bool:
        if token not in self._visible:
            self._visible[token] = bool(self._tokenizer.decode([token], skip_special_tokens=True).strip())
        return self._visible[token]

    def _text(self, token: int) -> str:
        if token not in self._text_of:
            # As it reads inside a text: some decoders strip a space from the first token.
            alone = self._tokenizer.decode([token], skip_special_tokens=False)
            twice = self._tokenizer.decode([token, token], skip_special_tokens=False)
            self._text_of[token] = twice[len(alone) :] if twice.startswith(alone) else alone
        return self._text_of[token]
