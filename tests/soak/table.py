"""The table that a soak ends with: how often each fault was made, and what became of the runs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.soak.runs import Differs

SAME = "same bytes"


@dataclass
class Row:
    """Faults of one kind; `outcomes` counts how the runs ended, `differences` says what was wrong."""

    part: str
    kind: str
    number: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


class Report:
    """Collects the outcomes of faults."""

    def __init__(self, console: Console) -> None:
        self.console, self.rows = console, dict[tuple[str, str], Row]()

    def run(
        self,
        part: str,
        kind: str,
        attempt: Callable[[], str],
        number: Callable[[], int] = lambda: 1,
    ) -> None:
        """Make faults of a kind; `attempt` returns how they ended, or raises Differs.

        `number` tells afterwards how many faults were made.
        """
        row = self.rows.setdefault((part, kind), Row(part, kind))
        began = time.monotonic()
        try:
            outcome = attempt()
        except Differs as error:
            outcome = "DIFFERS"
            row.differences.append(str(error))
            self.console.print(f"{part} {kind}: {error}", style="red", markup=False)
        row.number += number()
        row.outcomes[outcome] += 1
        row.seconds += time.monotonic() - began
        self.console.print(f"{part} {kind}: {outcome}", markup=False, style="dim")

    @property
    def failed(self) -> bool:
        """Whether any run differs, or nothing was tried."""
        return not self.rows or any(row.differences for row in self.rows.values())

    def table(self) -> Table:
        table = Table("part", "kind", "number", "outcome", "seconds")
        for row in self.rows.values():
            outcomes = ", ".join(f"{name} {count}" for name, count in row.outcomes.items())
            table.add_row(row.part, row.kind, str(row.number), outcomes, f"{row.seconds:.0f}")
        return table

    def write(self, path: Path, **more: object) -> None:
        rows = [vars(row) for row in self.rows.values()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**more, "rows": rows}, indent=1) + "\n", encoding="utf-8")
