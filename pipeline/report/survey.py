"""One walk over a run's ledger: which clips to hear, and what was left out."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import reduce
from operator import and_
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ledger import Ledger
from pipeline.plan import Plan
from pipeline.stats import LANES, ORDER_UNIT, unit_receipts

BORDERLINE, WORST, BEST = "borderline", "worst", "best"
ORDER_STAGE = "interleave"
STAGES = (*LANES["speech"], ORDER_STAGE)


class Place(NamedTuple):
    """Where a scored clip lies: row `row` of the score stage's table of `unit`."""

    ovrl: float
    unit: str
    row: int


class Group(NamedTuple):
    """What excluded records are counted by."""

    source: str
    stage: str
    outcome: str
    reason: str


class Extremes:
    """The best, the worst and the scores on either side of the threshold, `num` clips of each."""

    def __init__(self, threshold: float, num: int) -> None:
        self._threshold, self._num = threshold, num
        self._nearest: dict[str, list[tuple[float, Place]]] = {}

    def add(self, unit: str, ovrl: np.ndarray) -> None:
        """Take the scores (float64 [clips]) of a unit into account."""
        above = ovrl > self._threshold
        distances = {
            "above": np.where(above, ovrl - self._threshold, np.inf),
            "below": np.where(above, np.inf, self._threshold - ovrl),
            WORST: ovrl,
            BEST: -ovrl,
        }
        room = 3 * self._num  # a clip is shown once: those of another kind must not leave gaps
        for kind, distance in distances.items():
            rows = np.argsort(distance, kind="stable")[:room]
            found = [
                (float(distance[row]), Place(float(ovrl[row]), unit, int(row)))
                for row in rows.tolist()
                if np.isfinite(distance[row])
            ]
            self._nearest[kind] = heapq.nsmallest(room, [*self._nearest.get(kind, ()), *found])

    def pick(self) -> dict[str, list[Place]]:
        """Return the clips of each kind, the highest score first; no clip is of two kinds."""
        picked: dict[str, list[Place]] = {BORDERLINE: [], WORST: [], BEST: []}
        waiting = {kind: deque(p for _, p in found) for kind, found in self._nearest.items()}
        turns = [("above", BORDERLINE), ("below", BORDERLINE), (WORST, WORST), (BEST, BEST)]
        taken: set[Place] = set()
        for _ in range(self._num):  # by turns: where clips are few, each kind gets some
            for source, kind in turns:
                left = waiting.get(source, deque())
                while left and left[0] in taken:
                    left.popleft()
                if left and len(picked[kind]) < self._num:
                    picked[kind].append(left.popleft())
                    taken.add(picked[kind][-1])
        return {kind: sorted(places, reverse=True) for kind, places in picked.items()}


@dataclass
class LeftOut:
    """Excluded records: all are counted, and the first `most` of each group are held."""

    most: int
    counts: Counter[Group] = field(default_factory=Counter)
    _rows: dict[Group, list[dict[str, str]]] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        """Take a table of EXCLUDED into account."""
        keys = Group._fields
        grouped = table.select(keys).group_by(list(keys)).aggregate([([], "count_all")])
        for found in grouped.to_pylist():
            group, number = Group(*(found[key] for key in keys)), found["count_all"]
            self.counts[group] += number
            held = self._rows.setdefault(group, [])
            if len(held) < self.most:
                same = reduce(and_, (pc.field(key) == found[key] for key in keys))
                held += table.filter(same).slice(0, self.most - len(held)).to_pylist()

    def shown(self) -> list[dict[str, str]]:
        """Return at most `most` records, as many of each group as of any other if it has them."""
        groups = sorted(self.counts, key=lambda group: (self.counts[group], group))
        quotas, left = {}, self.most
        for place, group in enumerate(groups):
            quotas[group] = min(self.counts[group], left // (len(groups) - place))
            left -= quotas[group]
        groups.sort(key=lambda group: (STAGES.index(group.stage), group))
        return [row for group in groups for row in self._rows[group][: quotas[group]]]

    def losses(self, sources: set[str]) -> list[tuple[str, str, str, int]]:
        """Return (stage, outcome, reason, records) of some sources, in the order of the stages."""
        summed: Counter[tuple[str, str, str]] = Counter()
        for group, number in self.counts.items():
            if group.source in sources:
                summed[group.stage, group.outcome, group.reason] += number
        ordered = sorted(summed, key=lambda key: (STAGES.index(key[0]), -summed[key], key))
        return [(*key, summed[key]) for key in ordered]


@dataclass(frozen=True)
class Survey:
    """What the page shows beside the statistics."""

    extremes: Extremes
    left_out: LeftOut


def survey(plan: Plan, ledger: Ledger, threshold: float, num_clips: int, most: int) -> Survey:
    """Walk over all receipts once. `most` bounds the excluded records that are held."""
    extremes, left_out = Extremes(threshold, num_clips), LeftOut(most)
    for unit, receipts in unit_receipts(plan, ledger):
        for stage, receipt in receipts.items():
            if receipt.excluded is not None:
                left_out.add(ledger.storage.read_table(receipt.excluded.path))
            if stage == "score":
                with ledger.storage.open_batches(receipt.output.path, ["ovrl"]) as batches:
                    scores = [batch.column(0).to_numpy() for batch in batches]
                extremes.add(unit.unit, np.concatenate([np.empty(0), *scores]))
    order = ledger.receipt(ORDER_STAGE, ORDER_UNIT)
    if order is not None and order.excluded is not None:
        left_out.add(ledger.storage.read_table(order.excluded.path))
    return Survey(extremes, left_out)
