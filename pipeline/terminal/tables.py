"""The form of all tables in the terminal: no lines, dim headings, the title above."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def grid(
    title: str, *columns: str, left: Sequence[str] = (), cut: str = "", fold: Sequence[str] = ()
) -> Table:
    """Make a table whose first column, and those in `left`, are aligned to the left.

    Where the terminal is too narrow, the column `cut` (or else the first) is shortened with an
    ellipsis, and those in `fold` continue on a new line of their cell. No other is ever broken.
    """
    table = Table(
        title=title, header_style="dim", box=None, padding=(0, 2, 0, 0), pad_edge=False,
        expand=cut in columns,
    )  # fmt: skip
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if number == 0 or column in left else "right",
            # Rich takes width from columns that may wrap before it cuts the others, numbers too.
            no_wrap=column not in fold and not (number == 0 and cut not in columns),
            overflow="fold" if column in fold else "ellipsis",
            ratio=1 if column == cut else None,
        )
    return table


def titled(table: Table) -> RenderableType:
    """Put a table's title on a line above it, where it does not wrap at the table's width."""
    title, table.title = str(table.title or ""), None
    return Group(Text(title, style="bold"), table) if title else table
