"""One walk over a run's ledger: which clips to listen to, and what was left out."""

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

from koe.dataflow import INTERLEAVE, ORDER_UNIT, stage_making, stage_names
from koe.schema import EXCLUDED
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.plan import Plan
from pipeline.run_dir.reading import read_index, unit_receipts

BORDERLINE, WORST, BEST = "borderline", "worst", "best"
FASTEST, SLOWEST, LONGEST = "fastest", "slowest", "longest"
BY_SCORE, OUTLIERS = (BORDERLINE, WORST, BEST), (FASTEST, SLOWEST, LONGEST)


class ClipPlace(NamedTuple):
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
    """Clips that stand out: `num` of each kind by score, and half as many of each kind of outlier.

    By score: the best, the worst, and those on either side of the threshold. Outliers often have a
    wrong transcript or cut: the fastest speech, the slowest speech, the longest clips.
    """

    def __init__(self, threshold: float, num: int) -> None:
        self._threshold = threshold
        self._quotas = dict.fromkeys(BY_SCORE, num) | dict.fromkeys(OUTLIERS, (num + 1) // 2)
        # each clip is shown once, so enough are held to fill the place of those shown as another kind
        self._room = sum(self._quotas.values())
        self._nearest: dict[str, list[tuple[float, ClipPlace]]] = {}

    def add(self, unit: str, ovrl: np.ndarray, characters: np.ndarray, seconds: np.ndarray) -> None:
        """Add the scores, transcript lengths and seconds of a unit's clips, [clips] each."""
        above, timed = ovrl > self._threshold, seconds > 0
        rate = np.full(len(ovrl), np.nan)  # characters per second
        np.divide(characters, seconds, out=rate, where=timed)
        distances = {
            "above": np.where(above, ovrl - self._threshold, np.inf),
            "below": np.where(above, np.inf, self._threshold - ovrl),
            WORST: ovrl,
            BEST: -ovrl,
            FASTEST: -rate,
            SLOWEST: rate,
            LONGEST: -seconds,
        }
        for kind, distance in distances.items():
            rows = np.argsort(distance, kind="stable")[: self._room]
            found = [
                (float(distance[row]), ClipPlace(float(ovrl[row]), unit, int(row)))
                for row in rows.tolist()
                if np.isfinite(distance[row])
            ]
            held = self._nearest.get(kind, ())
            self._nearest[kind] = heapq.nsmallest(self._room, [*held, *found])

    def pick(self) -> dict[str, list[ClipPlace]]:
        """Return the clips of each kind; no clip is of two kinds.

        Clips by score come in the order of their scores, the highest first; outliers begin with the
        most extreme.
        """
        picked: dict[str, list[ClipPlace]] = {kind: [] for kind in self._quotas}
        waiting = {kind: deque(p for _, p in found) for kind, found in self._nearest.items()}
        turns = [("above", BORDERLINE), ("below", BORDERLINE)]
        turns += [(kind, kind) for kind in (WORST, BEST, *OUTLIERS)]
        taken: set[ClipPlace] = set()
        for _ in range(self._room):  # in turn, so that each kind gets some where clips are few
            for source, kind in turns:
                left = waiting.get(source, deque())
                while left and left[0] in taken:
                    left.popleft()
                if left and len(picked[kind]) < self._quotas[kind]:
                    picked[kind].append(left.popleft())
                    taken.add(picked[kind][-1])
        for kind in BY_SCORE:
            picked[kind].sort(reverse=True)
        return picked


@dataclass
class LeftOut:
    """Excluded records: all are counted, and the first `limit` of each group are held."""

    limit: int
    counts: Counter[Group] = field(default_factory=Counter)
    _rows: dict[Group, list[dict[str, str]]] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        """Add a table of EXCLUDED."""
        keys = Group._fields
        grouped = table.select(keys).group_by(list(keys)).aggregate([([], "count_all")])
        for found in grouped.to_pylist():
            group, number = Group(*(found[key] for key in keys)), found["count_all"]
            self.counts[group] += number
            held = self._rows.setdefault(group, [])
            if len(held) < self.limit:
                same = reduce(and_, (pc.field(key) == found[key] for key in keys))
                held += table.filter(same).slice(0, self.limit - len(held)).to_pylist()

    def totals(self, name: str) -> list[tuple[str, int]]:
        """Count the records by one field of Group, the most frequent value first."""
        totals: Counter[str] = Counter()
        for group, number in self.counts.items():
            totals[getattr(group, name)] += number
        return sorted(totals.items(), key=lambda item: (-item[1], item[0]))

    def shown(self) -> list[dict[str, str]]:
        """Return at most `limit` records, shared evenly among the groups."""
        groups = sorted(self.counts, key=lambda group: (self.counts[group], group))
        quotas, left = {}, self.limit
        for place, group in enumerate(groups):
            quotas[group] = min(self.counts[group], left // (len(groups) - place))
            left -= quotas[group]
        groups.sort(key=lambda group: (stage_names().index(group.stage), group))
        return [row for group in groups for row in self._rows[group][: quotas[group]]]

    def losses(self, sources: set[str]) -> list[tuple[str, str, str, int]]:
        """Return (stage, outcome, reason, records) of some sources, in the order of the stages."""
        summed: Counter[tuple[str, str, str]] = Counter()
        for group, number in self.counts.items():
            if group.source in sources:
                summed[group.stage, group.outcome, group.reason] += number
        ordered = sorted(summed, key=lambda key: (stage_names().index(key[0]), -summed[key], key))
        return [(*key, summed[key]) for key in ordered]


@dataclass(frozen=True)
class Survey:
    """What the page shows beside the statistics."""

    extremes: Extremes
    left_out: LeftOut


def survey(plan: Plan, ledger: Ledger, threshold: float, num_clips: int, limit: int) -> Survey:
    """Walk over all receipts once. `limit` bounds the excluded records that are held."""
    extremes, left_out = Extremes(threshold, num_clips), LeftOut(limit)
    for unit, receipts in unit_receipts(plan, ledger):
        for stage, receipt in receipts.items():
            if receipt.excluded is not None:
                left_out.add(ledger.storage.read_table(receipt.excluded.path))
            if stage == stage_making("ovrl") and num_clips:
                extremes.add(unit.unit, *_measured(ledger, receipt))
    order = ledger.receipt(INTERLEAVE, ORDER_UNIT)
    # until the shards are made, the statistics count all tokenized records as not done
    if order is not None and order.excluded is not None and read_index(ledger) is not None:
        with ledger.storage.open_batches(order.excluded.path, EXCLUDED.names) as batches:
            for batch in batches:
                left_out.add(pa.Table.from_batches([batch]))
    return Survey(extremes, left_out)


def _measured(ledger: Ledger, score: Receipt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read ovrl, characters and seconds of a unit's clips, float64 [clips] each."""
    parts = [(np.empty(0),) * 3]
    with ledger.storage.open_batches(score.output.path, ["ovrl", "text", "seconds"]) as batches:
        for batch in batches:
            characters = pc.call_function("utf8_length", [batch["text"]])
            columns = batch["ovrl"], characters, batch["seconds"]
            parts.append(tuple(column.to_numpy() for column in columns))
    ovrl, characters, seconds = map(np.concatenate, zip(*parts, strict=True))
    return ovrl, characters, seconds
