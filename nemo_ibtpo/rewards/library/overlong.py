"""A penalty for responses that come near the length limit (DAPO's soft overlong punishment, as a score).

DAPO (arXiv 2503.14476, section 3.4) adds to a reward of 1 or -1, for a response of L tokens::

    0                                              L <= max_tokens - buffer_tokens
    ((max_tokens - buffer_tokens) - L) / buffer_tokens    in between
    -1                                             L > max_tokens

Rewards lie in [0, 1] here, so the score is 1 plus that. As one of ``reward.parts`` beside the verifier, whose 0 to 1
stands for DAPO's -1 to 1, it has DAPO's proportions with half of the verifier's weight (2/3 and 1/3): the whole
punishment then takes half of what a right answer earns over a wrong one.
"""

from __future__ import annotations


def not_overlong(response_tokens: int, *, max_tokens: int, buffer_tokens: int) -> float:
    """1 up to ``max_tokens - buffer_tokens`` tokens, then falling linearly to 0 at ``max_tokens``.

    Args:
        response_tokens: length of the response.
        max_tokens: ``rollout.max_new_tokens``; DAPO stops sampling there as well.
        buffer_tokens: over which the punishment grows; DAPO's is a fifth of ``max_tokens``.

    Raises:
        ValueError: the buffer is empty, or longer than the limit.
    """
    if not 0 < buffer_tokens <= max_tokens:
        raise ValueError(f"buffer_tokens={buffer_tokens} must be above 0 and at most max_tokens={max_tokens}")
    return min(1.0, max(0.0, (max_tokens - response_tokens) / buffer_tokens))
