"""Tables of the terminal: where the width is short a name is cut, never a number."""

import io

import pytest
from rich.console import Console

from pipeline.terminal.tables import grid, titled

LONG = "a_source_with_a_name_of_forty_characters"


def shown(width: int, cut: str = "") -> list[str]:
    table = grid("Records", "source", "in", "kept", "example", cut=cut, left=["example"])
    table.add_row(LONG, "15,234,512", "9,876,543", "its text goes on and on")
    table.add_row("short", "1", "0", "")
    console = Console(file=io.StringIO(), width=width)
    console.print(titled(table))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 70, 120])
def test_only_the_name_is_cut(width):
    title, head, row, other = shown(width)
    assert title == "Records"
    assert head.split() == ["source", "in", "kept", "example"]
    assert "15,234,512  9,876,543  its text goes on and on" in row
    assert row.startswith("a_s")
    assert (LONG in row) == (width == 120)
    assert other.split() == ["short", "1", "0"]


def test_a_column_that_may_be_cut_goes_first():
    row = shown(80, cut="example")[2]
    assert row.startswith(f"{LONG}  15,234,512  9,876,543  its")
    assert row.endswith("…")
