"""The one table that `koe run` and `koe status` show, one row per stage, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from koe.numbers import clock_time, short

# The unit of each rate in log lines, by the name of the measure.
_RATE_NAMES = {"windows": "windows/s", "seconds": "audio-s/s", "tokens": "tokens/s"}
_HEADS = ("win/s", "aud/s", "tok/s")
_BAR_WIDTH = 7


@dataclass(frozen=True)
class StageRow:
    """How far a stage is. `rates` are named as in _RATE_NAMES; `eta_seconds` is None while unknown."""

    stage: str
    units_done: int
    units: int
    records: int = 0
    kept: int = 0
    rejected: int = 0
    quarantined: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    eta_seconds: float | None = None

    @property
    def complete(self) -> bool:
        return self.units_done >= self.units


@dataclass(frozen=True)
class StageTable:
    """The rows as a table with notes below; on a narrow terminal it has no bars, then no rates."""

    rows: Sequence[StageRow]
    notes: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._table(with_bars=True, with_rates=True)
        if self._width(table, console, options) > options.max_width:
            table = self._table(with_bars=False, with_rates=True)
        if self._width(table, console, options) > options.max_width:
            table = self._table(with_bars=False, with_rates=False)
        yield table
        for note in self.notes:
            yield Text(note, style="dim")

    def _width(self, table: Table, console: Console, options: ConsoleOptions) -> int:
        return Measurement.get(console, options.update(width=1000), table).maximum

    def _table(self, with_bars: bool, with_rates: bool) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("stage", no_wrap=True, min_width=10)
        if with_bars:
            table.add_column("", no_wrap=True, width=_BAR_WIDTH)
        # As wide from the start as their numbers may become: columns that grow make the table jump.
        heads = ("units", "in", "kept", "rej.", "quar.", *(_HEADS if with_rates else ()), "ETA")
        for head in heads:
            table.add_column(head, justify="right", no_wrap=True, min_width=5)
        for row in self.rows:
            bar = ProgressBar(total=max(row.units, 1), completed=row.units_done, width=_BAR_WIDTH)
            rates = [row.rates.get(name) for name in _RATE_NAMES] if with_rates else []
            table.add_row(
                row.stage,
                *([bar] if with_bars else []),
                f"{row.units_done}/{row.units}",
                *(short(count) for count in (row.records, row.kept, row.rejected)),
                Text(short(row.quarantined), style="yellow" if row.quarantined else ""),
                *("" if rate is None else short(rate) for rate in rates),
                _eta(row),
            )
        return table


def stage_line(row: StageRow, note: str = "") -> str:
    """Write a row as a line for a log."""
    parts = [
        f"{row.stage:<10} {row.units_done}/{row.units} units",
        f"kept {row.kept:,}",
        f"rejected {row.rejected:,}",
        f"quarantined {row.quarantined:,}",
        *(f"{short(value)} {_RATE_NAMES[name]}" for name, value in row.rates.items()),
    ]
    if not row.complete and row.eta_seconds is not None:
        parts.append(f"ETA {clock_time(row.eta_seconds)}")
    return "  ".join([*parts, note] if note else parts)


def flowing(rows: Sequence[StageRow]) -> list[StageRow]:
    """Raise the time left of each stage to that of the stages before it, which it waits for.

    The rows are in the order of the data. A stage whose own rate is unknown keeps none.
    """
    found, longest = [], 0.0
    for row in rows:
        if not row.complete and row.eta_seconds is not None:
            longest = max(longest, row.eta_seconds)
            row = replace(row, eta_seconds=longest)
        found.append(row)
    return found


def _eta(row: StageRow) -> Text:
    if row.complete:
        return Text("done", style="green")
    return Text("-" if row.eta_seconds is None else clock_time(row.eta_seconds))
