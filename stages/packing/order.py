"""The order of the samples: which one goes to which row of which shard, and which to none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa

from koe.dataflow import INTERLEAVE
from koe.errors import ContractError
from koe.schema import EXCLUDED, ORDER, SAMPLE, TEXT, require_schema, sample_location
from stages.packing.duplicates import repetitions
from stages.packing.ids import first_of_its_id, hash_ids
from stages.packing.layout import lay_rows
from stages.packing.leaving import Clips, Left, ReadClips
from stages.packing.pack import require_frames
from stages.packing.queue import Catalog, Queue, fit_to_ratio, leave_out_overlong
from stages.packing.rates import unusual_clips
from stages.packing.reasons import (
    DUPLICATE,
    EXHAUSTED,
    LONG,
    REASONS,
    SAME_AUDIO,
    SAME_CODES,
    SAME_TEXT,
    SHORT,
)
from stages.packing.shards import Shards
from stages.settings import InterleaveSettings


@dataclass(frozen=True)
class UnitSamples:
    """The samples of one unit without their tokens; `index` is the unit's place in the plan.

    `read` reads the SAMPLE table again, for the ids and sources of samples that have no place, and
    `clips` what the samples were made of; None for text, and where nothing is known of it.
    """

    index: int
    name: str
    read: Callable[[], pa.Table]
    id_hashes: np.ndarray  # int64 [n], of `stages.packing.ids.hash_ids`
    is_text: np.ndarray  # bool [n]
    lengths: np.ndarray  # int32 [n], tokens
    num_frames: np.ndarray  # int32 [n], 0 for text
    clips: ReadClips | None = None


def unit_samples(
    index: int, name: str, read: Callable[[], pa.Table], clips: ReadClips | None = None
) -> UnitSamples:
    """Read what the order needs from a unit's SAMPLE table; the tokens are not read."""
    samples = require_schema(read(), SAMPLE, f"the samples of unit {name}")
    return UnitSamples(
        index=index,
        name=name,
        read=read,
        id_hashes=hash_ids(samples["id"]),
        is_text=samples["modality"].to_numpy() == TEXT,
        lengths=np.concatenate(
            [np.empty(0, np.int32)]
            + [chunk.value_lengths().to_numpy() for chunk in samples["input_ids"].chunks]
        ),
        num_frames=samples["frames"].to_numpy().astype(np.int32),
        clips=clips,
    )


class Order:
    """The contents of all shards, and the samples that have no place, as arrays.

    Tables are made when they are asked for, or streamed: those of 24 M samples would take several
    GB. `num_samples` counts all samples: placed, rejected and quarantined.
    """

    def __init__(
        self, units: list[_Unit], catalog: Catalog, reasons: np.ndarray, left: Left, shards: Shards
    ) -> None:
        self.num_samples = len(reasons)
        self._units, self._catalog, self._shards = units, catalog, shards
        self._reasons, self._left = reasons, left

    def tables(self) -> Iterator[pa.Table]:
        """Yield the order (ORDER), sorted by shard and row."""
        return self._shards.tables()

    def excluded(self, outcome: str) -> Iterator[pa.Table]:
        """Yield the samples (EXCLUDED) that were rejected or quarantined, unit by unit."""
        codes = [code for code, (kind, _, _) in REASONS.items() if kind == outcome]
        for place, unit in enumerate(self._units):
            begin, end = self._catalog.bounds[place : place + 2]
            reasons = self._reasons[begin:end]
            rows = np.flatnonzero(np.isin(reasons, codes))
            if len(rows):
                yield self._excluded(unit, int(begin), rows, outcome)

    def _excluded(self, unit: _Unit, begin: int, rows: np.ndarray, outcome: str) -> pa.Table:
        samples = unit.read()
        sources = samples["source"].take(pa.array(rows))
        codes = self._reasons[begin + rows].tolist()
        details = (
            self._detail(code, begin + row, source)
            for code, row, source in zip(codes, rows.tolist(), sources.to_pylist(), strict=True)
        )
        columns = {
            "id": samples["id"].take(pa.array(rows)),
            "source": sources,
            "stage": [INTERLEAVE] * len(rows),
            "outcome": [outcome] * len(rows),
            "reason": [REASONS[code][1] for code in codes],
            "detail": list(details),
            "location": [sample_location(unit.name, row) for row in rows.tolist()],
        }
        return pa.table(columns, schema=EXCLUDED)

    def _detail(self, code: int, number: int, source: str) -> str:
        template = REASONS[code][2]
        if code in (SHORT, LONG):
            figures = (self._left.value_of(number), *self._left.bounds[source])
            return template.format(*(f"{figure:.2f}" for figure in figures))
        if code in (SAME_AUDIO, SAME_CODES, SAME_TEXT):
            return template.format(self._location(int(self._left.value_of(number))))
        return template.format(self._catalog.lengths[number])

    def _location(self, number: int) -> str:
        place = int(np.searchsorted(self._catalog.bounds, number, side="right")) - 1
        return sample_location(self._units[place].name, number - int(self._catalog.bounds[place]))

    def reasons(self, outcome: str) -> dict[str, int]:
        """Count what is excluded, by reason."""
        counts = np.bincount(self._reasons, minlength=max(REASONS) + 1)
        found = {
            reason: int(counts[code])
            for code, (kind, reason, _) in REASONS.items()
            if kind == outcome and counts[code]
        }
        return dict(sorted(found.items()))

    def placed_by_unit(self) -> Iterator[tuple[int, int]]:
        """Yield each unit's index in the plan, and how many of its samples have a place."""
        for unit, (begin, end) in zip(self._units, pairwise(self._catalog.bounds), strict=True):
            yield unit.index, int(np.count_nonzero(self._reasons[begin:end] == 0))

    def shard_names(self) -> list[str]:
        return self._shards.names

    @cached_property
    def table(self) -> pa.Table:
        """The complete order (ORDER)."""
        return pa.concat_tables([ORDER.empty_table(), *self.tables()]).combine_chunks()

    def shards(self) -> dict[str, pa.Table]:
        """Slice the order by shard; shards in the order of their names."""
        sizes = Counter(self.table["shard"].to_pylist())
        ends = np.cumsum([0, *(sizes[name] for name in self.shard_names())]).tolist()
        return {
            name: self.table.slice(begin, end - begin)
            for name, (begin, end) in zip(self.shard_names(), pairwise(ends), strict=True)
        }


@dataclass(frozen=True)
class _Unit:
    index: int
    name: str
    read: Callable[[], pa.Table]
    clips: ReadClips | None


def plan_order(
    units: Iterable[UnitSamples], settings: InterleaveSettings, index_folder: str = ""
) -> Order:
    """Place every sample in a row of a shard, or say why it has no place.

    First leave samples whose id came before, whose clips are unusual for their source
    (`stages/packing/rates.py`), that are too long, and whose clips repeat one that is still there
    (`stages/packing/duplicates.py`): each is counted under the first of these.

    The samples of a modality are shuffled and packed, and their rows shuffled and mixed by the
    ratio; where the ratio uses up one modality, samples of the other are rejected. Nothing but the
    settings and the plan's order of the units decides the result. `units` come in that order; each
    is read and released before the next.
    `index_folder`: where the checkpoints of compressed sources are, whose audio may be compared.
    Raises: ConfigError when the ratio leaves no row at all.
    """
    known_units, catalog, first = _collect(units, settings.max_row_tokens)
    reasons = np.where(first, np.uint8(0), np.uint8(DUPLICATE))
    del first
    clips = [
        Clips(begin, unit.clips)
        for begin, unit in zip(catalog.bounds.tolist(), known_units, strict=False)
        if unit.clips is not None
    ]
    unusual = unusual_clips(clips, reasons == 0, settings.transcripts)
    reasons[unusual.numbers] = unusual.codes
    leave_out_overlong(catalog, reasons, settings)
    repeated = repetitions(clips, reasons == 0, settings.duplicates, index_folder)
    reasons[repeated.numbers] = repeated.codes
    queues = [Queue(catalog, reasons, settings, text) for text in (True, False)]
    is_text = fit_to_ratio(queues, settings)
    for queue in queues:
        reasons[queue.left_out()] = EXHAUSTED
    layout = lay_rows(queues, is_text, settings)
    num_placed = layout.text.num_samples + layout.speech.num_samples
    _require_closed(reasons, num_placed)
    return Order(
        known_units, catalog, reasons, unusual.joined(repeated), Shards(catalog, layout, settings)
    )


def _collect(
    units: Iterable[UnitSamples], capacity: int
) -> tuple[list[_Unit], Catalog, np.ndarray]:
    """Collect the arrays of all units, and mark the first sample of each id, bool [n].

    Byte arrays grow in place (the kernel moves their pages); joining arrays would hold all of them
    twice.
    """
    hashes, is_text, lengths = bytearray(), bytearray(), bytearray()
    taken: list[_Unit] = []
    sizes, long_samples, long_frames = [0], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for unit in units:
        if taken and unit.index <= taken[-1].index:
            raise ContractError(
                f"unit {unit.name} comes after {taken[-1].name}, but precedes it in the plan",
                "the order of the units decides the bytes of the shards",
            )
        require_frames(unit.lengths[~unit.is_text], unit.num_frames[~unit.is_text])
        long = np.flatnonzero(unit.lengths > capacity)
        long_samples.append(len(is_text) + long)
        long_frames.append(unit.num_frames[long])
        hashes += unit.id_hashes.astype(np.int64, copy=False).tobytes()
        lengths += unit.lengths.astype(np.int32, copy=False).tobytes()
        is_text += unit.is_text.tobytes()
        taken.append(_Unit(unit.index, unit.name, unit.read, unit.clips))
        sizes.append(len(unit.lengths))
    bounds = np.cumsum(sizes, dtype=np.int64)
    catalog = Catalog(
        bounds=bounds,
        unit_index=np.array([unit.index for unit in taken], np.int32),
        is_text=np.frombuffer(is_text, bool),
        lengths=np.frombuffer(lengths, np.int32),
        long_samples=np.concatenate(long_samples).astype(np.uint32),
        long_frames=np.concatenate(long_frames).astype(np.int32),
    )
    first = first_of_its_id(
        np.frombuffer(hashes, np.int64), bounds, lambda unit: taken[unit].read()["id"].to_pylist()
    )
    return taken, catalog, first


def _require_closed(reasons: np.ndarray, num_placed: int) -> None:
    num_excluded = int(np.count_nonzero(reasons))
    if num_placed + num_excluded != len(reasons):
        raise ContractError(
            "interleave lost or invented samples",
            f"{len(reasons)} came in, {num_placed} were placed, {num_excluded} rejected or quarantined",
            "This is a defect in koe, please report it with the run's configuration.",
        )
