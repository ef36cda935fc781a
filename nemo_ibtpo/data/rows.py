"""A row of a data set, as a source gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no row.

    Attributes:
        reason: why.
    """

    reason: str


Row = dict[str, Any] | BadRow


class UnusableRowError(Exception):
    """A row makes no problem; the message is the reason that is counted."""
