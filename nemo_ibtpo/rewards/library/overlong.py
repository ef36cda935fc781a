"""A penalty for responses that come near the length limit (DAPO's soft overlong punishment, as a score)."""

from __future__ import annotations


def not_overlong(response_tokens: int, *, max_tokens: int, buffer_tokens: int) -> float:
    """1 up to ``max_tokens - buffer_tokens`` tokens, then falling linearly to 0 at ``max_tokens``."""
    if not 0 < buffer_tokens <= max_tokens:
        raise ValueError(f"buffer_tokens={buffer_tokens} must be above 0 and at most max_tokens={max_tokens}")
    return min(1.0, max(0.0, (max_tokens - response_tokens) / buffer_tokens))
