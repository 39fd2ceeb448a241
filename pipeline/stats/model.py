"""The types of a run's statistics; `json_contract` writes them for `koe stats --json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from koe.numbers import not_readable
from koe.schema import QUARANTINED


@dataclass
class Account:
    """What became of the records of a source or modality; `pending` ones await a later stage.

    `lost_bytes` of its files could not be read. They held about `lost_records` records, for which
    fewer may stand in `quarantined` (see `pipeline.run_dir.plan.Lost`).
    """

    modality: str
    records_in: int = 0
    kept: int = 0
    pending: int = 0
    seconds_in: float = 0.0
    seconds_kept: float = 0.0  # until the shards are made, of the pending encoded clips as well
    rejected: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    lost_records: int = 0
    lost_bytes: int = 0
    notes: Counter[str] = field(default_factory=Counter)  # what is not read, by records

    @property
    def adds_up(self) -> bool:
        """Whether in = kept + rejected + quarantined + pending."""
        ended = self.kept + self.rejected.total() + self.quarantined.total()
        return self.records_in == ended + self.pending

    @property
    def hours_in(self) -> float:
        return round(self.seconds_in / 3600, 4)

    @property
    def hours_kept(self) -> float:
        return round(self.seconds_kept / 3600, 4)

    @property
    def not_readable(self) -> str:
        """What was lost of the source files, in words; empty for nothing."""
        return not_readable(self.lost_records, self.lost_bytes) if self.lost_records else ""

    def reasons(self, outcome: str) -> dict[str, int]:
        """Count the records that were rejected or quarantined, by reason in alphabetical order."""
        return dict(sorted((self.quarantined if outcome == QUARANTINED else self.rejected).items()))

    def add(self, other: Account) -> None:
        self.records_in += other.records_in
        self.kept += other.kept
        self.pending += other.pending
        self.seconds_in += other.seconds_in
        self.seconds_kept += other.seconds_kept
        self.rejected += other.rejected
        self.quarantined += other.quarantined
        self.lost_records += other.lost_records
        self.lost_bytes += other.lost_bytes
        self.notes += other.notes


@dataclass(frozen=True)
class ScoreStats:
    """The scores of all clips; `quantiles` by score (sig, bak, ovrl) and mark (p1 ... p99)."""

    clips: int
    windows: int
    scorers: Sequence[str]
    quantiles: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class WhatIf:
    """What a threshold would keep of the scored clips.

    The scores of `uncertain` clips are so near the threshold that their error may reach across it:
    the encode stage scores them again in FP32, and may then decide otherwise than counted here.
    """

    threshold: float
    clips: int
    hours: float
    share: float
    uncertain: int


@dataclass(frozen=True)
class Thresholds:
    """The threshold that was applied, and what others would keep.

    `configured` is None where nothing was encoded, or under several thresholds.
    """

    configured: float | None = None
    what_if: Sequence[WhatIf] = ()


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; the bins at either end also hold what lies beyond them."""

    edges: Sequence[float]
    counts: Sequence[int]


@dataclass(frozen=True)
class Distribution:
    """The values of one quantity; `quantiles` by mark (p1 ... p99)."""

    count: int
    mean: float
    quantiles: Mapping[str, float]
    histogram: Histogram


@dataclass(frozen=True)
class SlotUse:
    """How much of its codebook one slot of a frame uses.

    `perplexity` is e to the entropy: the number of entries that, used evenly, would be as hard
    to guess. `counts_sorted` are the counts of the codes at `ranks`, the most frequent first.
    """

    slot: int
    codebook: int
    used: int
    share: float
    perplexity: float
    ranks: Sequence[int]
    counts_sorted: Sequence[int]


@dataclass(frozen=True)
class DuplicateStats:
    """Groups of equal clips, and the copies that follow the first of each in plan order."""

    groups: int
    clips: int
    hours: float
    examples: Sequence[Sequence[str]]  # ids, the largest groups first


@dataclass(frozen=True)
class MixPart:
    """A part of the training rows in stored order; `progress` is its middle, from 0 to 1.

    All tokens of a speech document count as speech, those of its text too.
    """

    progress: float
    speech_tokens: int
    text_tokens: int
    rows: int
    fill: float
    documents_per_row: float


@dataclass(frozen=True)
class SplitStats:
    """Rows and tokens of a split."""

    rows: int
    tokens: int


@dataclass(frozen=True)
class ShardStats:
    """All shards together; zeros while there are none.

    `max_row_tokens` is the length of the longest row, `row_capacity` the most that a row may hold.
    """

    num_shards: int = 0
    rows: int = 0
    tokens: int = 0
    fill: float = 0.0
    max_row_tokens: int = 0
    row_capacity: int = 0
    documents: int = 0
    tokens_by_modality: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, SplitStats] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardFile:
    """One shard."""

    path: str
    split: str
    rows: int
    tokens: int
    bytes: int
    sha256: str
    fill: float


@dataclass(frozen=True)
class ExcludedRecord:
    """A record that was not kept: a row of EXCLUDED."""

    id: str
    source: str
    stage: str
    outcome: str
    reason: str
    detail: str
    location: str


@dataclass(frozen=True)
class SourceTranscripts:
    """What checks of transcripts reject of a source's clips, by reason.

    `characters_per_second` by mark (p1 ... p99), of the clips that pass all checks but the last,
    whose `rate_bounds` are the least and the largest of them that are not unusual for the source.
    """

    clips: int
    rejected: Mapping[str, int]
    characters_per_second: Mapping[str, float]
    rate_bounds: Sequence[float] | None = None


@dataclass(frozen=True)
class TranscriptStats:
    """What checks of transcripts, those of `settings`, would reject of the clips as they are."""

    settings: Mapping[str, Any]
    sources: Mapping[str, SourceTranscripts]
    examples: Sequence[ExcludedRecord] = ()


@dataclass(frozen=True)
class CodecUsed:
    """The codec that made the codes; `description` holds all that the run recorded of it."""

    label: str
    sha256: str
    trained: bool
    description: Mapping[str, Any]

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> CodecUsed | None:
        """Read the description that receipts and index hold; None for an empty one."""
        if not description:
            return None
        return cls(
            label=str(description.get("label", "unknown")),
            sha256=str(description.get("sha256", "")),
            trained=bool(description.get("trained", True)),
            description=description,
        )


@dataclass(frozen=True, kw_only=True)
class RunStats:
    """The statistics of a run; what is not done yet is None or empty.

    From `distributions` on, they need a reading of every unit: `full_stats` fills them, `run_stats`
    leaves them empty. `distributions` are by source, or "all", and quantity. `unreadable_receipts`
    are the paths of receipts that are there and cannot be read: their units count as not done.
    `set_aside` are the units that a stage leaves aside: stage, unit and why.
    """

    schema_version: int
    clips: Account
    samples: Account
    sources: Mapping[str, Account]
    scores: ScoreStats | None = None
    thresholds: Thresholds = Thresholds()
    shards: ShardStats = ShardStats()
    codec: CodecUsed | None = None
    distributions: Mapping[str, Mapping[str, Distribution]] = field(default_factory=dict)
    codebooks: Sequence[SlotUse] = ()
    duplicates: Mapping[str, DuplicateStats] = field(default_factory=dict)
    transcripts: TranscriptStats | None = None
    mix: Sequence[MixPart] = ()
    shard_files: Sequence[ShardFile] = ()
    quarantine_examples: Sequence[ExcludedRecord] = ()
    unreadable_receipts: Sequence[str] = ()
    set_aside: Sequence[Mapping[str, str]] = ()

    @property
    def has_trained_codec(self) -> bool:
        """Whether the codec, if there is one yet, makes codes that can be heard."""
        return self.codec is None or self.codec.trained
