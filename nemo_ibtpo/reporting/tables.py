"""A table of finished cells, for Markdown files and for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich import table as rich_table


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: headings.
        rows: one cell a column, as they are shown; the first is the row's name.
        title, note: above and below it, perhaps empty.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""

    def as_markdown(self) -> str:
        """Title in bold, the table, the note."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join(part for part in (f"**{self.title}**" * bool(self.title), table, self.note) if part)

    def for_terminal(self) -> rich_table.Table:
        """For ``rich``; names on the left, figures on the right."""
        shown = rich_table.Table(
            title=self.title or None,
            title_justify="left",
            caption=self.note or None,
            caption_justify="left",
            box=box.SIMPLE,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for place, column in enumerate(self.columns):
            shown.add_column(column, justify="right" if place else "left", no_wrap=place > 0)
        for row in self.rows:
            shown.add_row(*row)
        return shown
