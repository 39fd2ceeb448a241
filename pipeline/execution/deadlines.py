"""How long a unit may take: many times what the others of its stage and source took per record."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from statistics import median

TIMES = 20.0  # the median
MIN_SECONDS = 600.0  # of a deadline that is measured: models are loaded, machines are shared
_ENOUGH = 3  # finished units that a median is taken of, at least
_RECENT = 101


@dataclass
class Deadlines:
    """Measures the speed of finished units, and says how many seconds the next one may take.

    Units are compared within their stage and their source, whose records are alike. `max_seconds`
    is never exceeded; None for no limit, also while nothing is measured.
    """

    max_seconds: float | None = None
    min_seconds: float = MIN_SECONDS
    _paces: defaultdict[tuple[str, str], deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=_RECENT))
    )

    def measure(self, stage: str, source: str, records: int, seconds: float) -> None:
        """Take in a unit that was finished, by this run or an earlier one."""
        self._paces[stage, source].append(seconds / max(records, 1))

    def seconds(self, stage: str, source: str, records: int, deaths: int = 0) -> float | None:
        """Return the deadline of a unit; each attempt that died doubles what was measured.

        Otherwise a unit that is merely slow would miss the same deadline again and again.
        """
        paces = self._paces.get((stage, source), ())
        if len(paces) < _ENOUGH:
            return self.max_seconds
        measured = max(self.min_seconds, TIMES * median(paces) * max(records, 1)) * 2.0**deaths
        return measured if self.max_seconds is None else min(measured, self.max_seconds)
