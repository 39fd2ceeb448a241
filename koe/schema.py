"""Arrow schemas of everything that koe stores, and the check that a table obeys them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from koe.errors import ContractError

SCHEMA_VERSION = 1

SPEECH = "speech"
TEXT = "text"

# A slice of one source file, planned once; the input of the first stage of either modality.
UNIT = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),  # size and modification of the file
        pa.field("start", pa.int64(), nullable=False),  # bytes; rows for Parquet
        pa.field("stop", pa.int64(), nullable=False),
        pa.field("records", pa.int64(), nullable=False),
        pa.field("gaps", pa.int64(), nullable=False),  # of the records: places that hold none
        pa.field("lost_bytes", pa.int64(), nullable=False),  # in the gaps
        pa.field("lost_records", pa.int64(), nullable=False),  # in the gaps, estimated
        pa.field("state", pa.string(), nullable=False),  # of the reader at `start`
    ]
)


@dataclass(frozen=True)
class Unit:
    """A row of UNIT: a fixed slice of one source file.

    `start` and `stop` are byte offsets, or row numbers for Parquet. `records` is the number of
    records to account for. `gaps` of them are places that cannot be read (the damaged header of a
    tar, the cut end of a JSON array): each is one quarantined record, whatever it held. The gaps
    hold `lost_bytes`, which were about `lost_records` records, at least one each. `state` is what
    a reader that begins at `start` must know of what precedes it; empty for most.
    """

    unit: str
    source: str
    modality: str
    path: str
    stamp: str
    start: int
    stop: int
    records: int
    gaps: int = 0
    lost_bytes: int = 0
    lost_records: int = 0
    state: str = ""

    def to_row(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Unit:
        """Invert `to_row`. Raises: TypeError for a row of other fields."""
        return cls(**row)


def unit_table(units: Iterable[Unit]) -> pa.Table:
    """Make a table of UNIT."""
    return pa.Table.from_pylist([unit.to_row() for unit in units], schema=UNIT)


def units_in(table: pa.Table) -> list[Unit]:
    """Invert `unit_table`."""
    return [Unit.from_row(row) for row in table.to_pylist()]


# One speech clip and where its bytes lie. Audio itself is never copied.
CLIP = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("speaker", pa.string()),
        pa.field("audio_kind", pa.string(), nullable=False),  # file | tar | parquet
        pa.field("audio_path", pa.string(), nullable=False),
        pa.field("audio_member", pa.string(), nullable=False),  # tar member or Parquet column
        pa.field("audio_offset", pa.int64(), nullable=False),  # byte in the file; Parquet row
        pa.field("audio_bytes", pa.int64(), nullable=False),
        pa.field("start_seconds", pa.float64(), nullable=False),  # of the clip in its audio
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("audio_hz", pa.int32(), nullable=False),
        pa.field("channels", pa.int32(), nullable=False),
        pa.field("channel", pa.int32()),  # the one that is the clip, from 0; null: their average
        pa.field("source_ovrl", pa.float64()),  # a score that the source itself carries
    ]
)

_SCORES = [
    pa.field("sig", pa.float64()),
    pa.field("bak", pa.float64()),
    pa.field("ovrl", pa.float64(), nullable=False),
    pa.field("p808", pa.float64()),
    pa.field("windows", pa.int32(), nullable=False),
    pa.field("ovrl_error", pa.float64(), nullable=False),  # at most this far from FP32
    pa.field("scorer", pa.string(), nullable=False),
]
_CODES = pa.field("codes", pa.list_(pa.uint16()))  # 7 per frame in Orpheus slot order, no offset

# `codes` is filled only where scoring had to encode anyway (score.signal: reconstruction).
SCORED = pa.schema([*CLIP, *_SCORES, _CODES])

ENCODED = pa.schema(
    [*CLIP, *_SCORES, pa.field("frames", pa.int32(), nullable=False), _CODES.with_nullable(False)]
)

# A training sample of either modality in the Orpheus layout.
SAMPLE = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
    ]
)


def sample_location(unit: str, row: int) -> str:
    """Say where a sample lies: row `row` of the SAMPLE table of a unit."""
    return f"{unit}#{row}"


def split_location(location: str) -> tuple[str, int]:
    """Invert `sample_location`.

    Raises: ContractError for a text of another form.
    """
    unit, _, row = location.rpartition("#")
    if not unit or not row.isdecimal():
        raise ContractError(f"{location!r} is not the location of a sample", "it is not UNIT#ROW")
    return unit, int(row)


# One piece of one sample, placed in one row of one shard; the plan of the interleave stage.
ORDER = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # within the shard
        pa.field("unit", pa.int32(), nullable=False),  # index into the plan's units
        pa.field("sample", pa.int32(), nullable=False),  # row in the unit's SAMPLE table
        pa.field("start", pa.int32(), nullable=False),  # token range of the sample
        pa.field("stop", pa.int32(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
    ]
)

# The order by the units of the samples, while the shards are made. `shard` and `place` say which
# piece of which shard it is, both counted from 0.
PLACEMENT = pa.schema(
    [
        pa.field(name, pa.int32(), nullable=False)
        for name in ("unit", "sample", "start", "stop", "shard", "place")
    ]
)

# A piece of a sample on its way to the shard that will hold it.
PIECE = pa.schema(
    [
        pa.field("place", pa.int32(), nullable=False),  # among the pieces of the shard
        *(pa.field(name, pa.string(), nullable=False) for name in ("id", "source", "modality")),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),  # of the piece only
    ]
)

# One row of a training shard: several documents packed into at most max_row_tokens tokens.
ROW = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("document_lengths", pa.list_(pa.int32()), nullable=False),
        pa.field("document_sources", pa.list_(pa.string()), nullable=False),
        pa.field("document_ids", pa.list_(pa.string()), nullable=False),
        pa.field("document_modalities", pa.list_(pa.string()), nullable=False),
        pa.field("document_units", pa.list_(pa.string()), nullable=False),
        pa.field("document_parts", pa.list_(pa.int32()), nullable=False),
    ]
)

# A record that a stage did not keep, with the reason; both outcomes share the layout.
# `outcome` is one of the two; `location` is a path with the member and offset, or the line.
EXCLUDED = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in ("id", "source", "stage", "outcome", "reason", "detail", "location")
    ]
)
REJECTED = "rejected"
QUARANTINED = "quarantined"


def require_schema(table: pa.Table, expected: pa.Schema, what: str) -> pa.Table:
    """Return `table` if its schema is `expected`.

    Raises: ContractError showing every field that differs, both sides.
    """
    if table.schema.equals(expected):
        return table
    have = {field.name: str(field) for field in table.schema}
    want = {field.name: str(field) for field in expected}
    lines = [
        f"  {name}: expected {want.get(name, 'nothing')!r}, found {have.get(name, 'nothing')!r}"
        for name in dict.fromkeys([*want, *have])
        if want.get(name) != have.get(name)
    ]
    raise ContractError(
        f"{what} has the wrong schema",
        "these fields differ (or their order does):\n" + "\n".join(lines),
        "If it was written by another version of koe, run the stage again with --force.",
    )
