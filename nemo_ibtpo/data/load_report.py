"""What became of the rows of a data set: nothing is left out without being counted."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Skipped:
    """Rows left out for one reason.

    Attributes:
        count: how many.
        first: location of the first of them, for the log.
    """

    count: int
    first: str


@dataclass(slots=True)
class LoadReport:
    """Counts of one data set.

    Attributes:
        source: what was read, as the user would name it.
        rows: rows that were looked at.
        loaded: problems made of them.
        skipped: rows left out, by reason.
        notes: what one may want to know besides.
    """

    source: str
    rows: int = 0
    loaded: int = 0
    skipped: dict[str, Skipped] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def skip(self, reason: str, location: str) -> None:
        """Count a row that is left out."""
        self.skipped.setdefault(reason, Skipped(0, location)).count += 1

    def summary(self) -> str:
        """One line for the log."""
        line = f"{self.source}: {self.loaded} problems from {self.rows} rows"
        left_out = [f"left out: {self.describe_skipped()}"] if self.skipped else []
        return "; ".join([line, *left_out, *self.notes])

    def describe_skipped(self) -> str:
        """The reasons with their counts and first locations."""
        parts = (f"{s.count} x {reason} (first: {s.first})" for reason, s in self.skipped.items())
        return "; ".join(parts)
