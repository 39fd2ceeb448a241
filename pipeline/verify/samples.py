"""All samples of a run in 21 bytes each (29 where samples are left out), and the few tokenized tables
that are open at a time.

The tables are read once, while their units are proved. What the shards must agree with later is kept
as one hash of 64 bits per sample: its tables need not be opened again for each shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from koe.dataflow import last_stage_with, output_path
from pipeline.run_dir.ledger import Receipt
from pipeline.run_dir.plan import Plan
from pipeline.run_dir.storage import Storage
from pipeline.verify.lists import TokenLists, offsets

OPEN, PLACED, CUT = 0, 1, 2  # outcomes; CUT: in pieces
DUPLICATE, OVERLONG, EXHAUSTED, SHORT, LONG, SAME_AUDIO, SAME_CODES, SAME_TEXT = range(3, 11)
LEFT_OUT = {  # outcomes by the reason for which an order leaves a sample out
    "duplicate_id": DUPLICATE,
    "overlong": OVERLONG,
    "ratio_exhausted": EXHAUSTED,
    "text_short_for_source": SHORT,
    "text_long_for_source": LONG,
    "duplicate_audio": SAME_AUDIO,
    "duplicate_codes": SAME_CODES,
    "duplicate_text": SAME_TEXT,
}

# Tables kept open. Units are asked for in plan order, so more of them would only help a run of few;
# mapped pages count as memory, and a remote table is held in memory.
_MAPPED_UNITS, _READ_UNITS = 8, 32


@dataclass(frozen=True)
class UnitSamples:
    """The tokenized samples of one unit, proved before."""

    ids: pa.ChunkedArray
    tokens: TokenLists


def hash_documents(ids: Iterable[str], tokens: Iterable[np.ndarray]) -> np.ndarray:
    """Hash id and tokens of documents together, int64 [documents].

    By the keyed SipHash of this process: of two documents that differ, one in 2^64 goes unnoticed,
    whatever was done to them.
    """
    hashes = (hash((id, part.tobytes())) for id, part in zip(ids, tokens, strict=True))
    return np.fromiter(hashes, np.int64)


class SampleTable:
    """Counts and hashes the samples while their units are proved, then knows the outcome of each.

    A sample's number is its place in plan order: that of its unit's first plus its row.
    """

    def __init__(self, plan: Plan, storage: Storage, holds_seconds: bool = False) -> None:
        self.units = tuple(unit.unit for unit in plan.units)
        self.sources = tuple(unit.source for unit in plan.units)
        self.modalities = tuple(unit.modality for unit in plan.units)
        self.outputs: list[str | None] = []  # SHA-256 of each tokenized table, by unit
        self.clips: list[str | None] = []  # that of the clips that it was made of
        self.left_out: Counter[tuple[str, str, str]] = Counter()  # by source, outcome and reason
        self.outcome = np.empty(0, np.uint8)
        self._storage, self._holds_seconds = storage, holds_seconds
        self._seconds: list[np.ndarray | None] = []  # of the clip of each sample, float64, by unit
        # all three grow in place
        self._id_hashes, self._lengths, self._documents = bytearray(), bytearray(), bytearray()
        self._sizes: list[int] = []
        self.open = lru_cache(_MAPPED_UNITS if storage.is_local else _READ_UNITS)(self._open)

    def add(
        self,
        receipt: Receipt | None,
        table: pa.Table | None,
        clips: Receipt | None = None,
        seconds: np.ndarray | None = None,
    ) -> None:
        """Take in the next unit of the plan; None: it is not tokenized.

        `clips` are those that the samples were made of, `seconds` their lengths, float64 [samples].
        """
        self.clips.append(clips.output.sha256 if clips else None)
        self._seconds.append(seconds if self._holds_seconds else None)
        if table is None:
            self._sizes.append(0)
        else:
            ids, tokens = table["id"].to_pylist(), TokenLists(table["input_ids"])
            self._id_hashes += np.fromiter(map(hash, ids), np.int64, len(ids)).tobytes()
            self._lengths += tokens.lengths.astype(np.int32).tobytes()
            self._documents += hash_documents(ids, tokens.all()).tobytes()
            self._sizes.append(len(ids))
        self.outputs.append(None if receipt is None else receipt.output.sha256)

    def close(self) -> None:
        """Number the samples, now that all units are taken in."""
        self.bounds = offsets(np.array(self._sizes, np.int64))
        self.outcome = np.zeros(len(self), np.uint8)
        self.lengths = np.frombuffer(self._lengths, np.int32)  # tokens
        self.documents = np.frombuffer(self._documents, np.int64)  # of `hash_documents`
        self.id_hashes = np.frombuffer(self._id_hashes, np.int64)  # until `take_hashes`

    def __len__(self) -> int:
        return sum(self._sizes)

    def seconds_of(self, unit: int, rows: list[int]) -> float:
        """Sum the seconds of the clips of samples of a unit; 0 for text."""
        seconds = self._seconds[unit]
        return 0.0 if seconds is None else float(seconds[rows].sum())

    def note_left_out(self, excluded: pa.RecordBatch) -> None:
        """Count samples that the order leaves out (EXCLUDED)."""
        columns = (excluded[name].to_pylist() for name in ("source", "outcome", "reason"))
        self.left_out.update(zip(*columns, strict=True))

    def take_hashes(self) -> np.ndarray:
        """Return the hashes of all ids, int64 [n], and forget them."""
        hashes, self.id_hashes, self._id_hashes = self.id_hashes, np.empty(0, np.int64), bytearray()
        return hashes

    def name(self, number: int) -> str:
        unit = int(np.searchsorted(self.bounds, number, side="right")) - 1
        row = number - int(self.bounds[unit])
        return f"sample {self.open(unit).ids[row]} of unit {self.units[unit]}"

    def placed_by_source(self) -> dict[str, int]:
        """Count the samples that the shards hold, by source."""
        placed: dict[str, int] = dict.fromkeys(self.sources, 0)
        for unit, source in enumerate(self.sources):
            outcome = self.outcome[self.bounds[unit] : self.bounds[unit + 1]]
            placed[source] += int(np.count_nonzero(outcome == PLACED))
        return placed

    def _open(self, unit: int) -> UnitSamples:
        path = output_path(last_stage_with("input_ids"), self.units[unit])
        table = self._storage.read_table(path)
        return UnitSamples(table["id"], TokenLists(table["input_ids"]))
