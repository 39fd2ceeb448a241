"""The cost of the shards: the interleave stage, on a corpus made of copies of the sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from koe.dataflow import INTERLEAVE, stage_making
from koe.errors import ConfigError
from koe.numbers import file_size
from koe.schema import REJECTED, split_location
from pipeline.estimate.timed import Clock
from pipeline.estimate.track import StageEstimate, Track, stored_bytes
from pipeline.jobs.assembly import Assembly
from stages.interleave import gather_rows
from stages.packing.leaving import wants_clips
from stages.packing.order import Order, UnitSamples, plan_order, unit_samples
from stages.settings import InterleaveSettings

_MAX_SAMPLES = 100_000  # are laid out: as many mix and fill rows as all samples would
_MAX_TOKENS = 4_000_000  # are gathered into shards, which takes some seconds
_LEFT_OUT = {
    "ratio_exhausted": "the ratio leaves out {:.0%} of the {} samples",
    "overlong": "{:.0%} of the {} samples are longer than a row and left out",
}


def estimate_shards(
    assembly: Assembly, tracks: Iterable[Track], clock: Clock
) -> StageEstimate | None:
    """Lay out the corpus by the run's own settings; None where the sample has nothing to lay out.

    Where every record was measured, the shards are those of the run, unless clips leave for what they
    repeat or for their rate: a sample cannot tell that, and the note says so.
    """
    tokenized = (track for track in tracks if track.stage == stage_making("input_ids"))
    last = [track for track in tokenized if track.kept.num_rows]
    if not last:
        return None
    nothing = StageEstimate(
        stage=INTERLEAVE,
        measured=sum(track.kept.num_rows for track in last),
        seconds=0.0,
        amounts={"tokens": 0.0},
        records=sum(track.records_kept for track in last),
        totals={"rows": 0.0, "tokens": 0.0},
        worker_hours=0.0,
        cpu_hours=0.0,
        gpu_hours=0.0,
        disk_bytes=0.0,
    )
    shrink = max(1.0, nothing.records / _MAX_SAMPLES)
    units = _corpus(last, shrink)
    started = clock()
    try:
        order = plan_order(units, assembly.order().settings)
    except ConfigError as error:  # the run would stop here; what comes before is worth knowing
        return replace(nothing, note=str(error))
    planning = clock() - started
    started = clock()
    gathered, size = _gather(order, units)
    gathering = clock() - started
    placed = int(np.sum(order.table["stop"].to_numpy() - order.table["start"].to_numpy()))
    rows = sum(int(piece["row"][-1].as_py()) + 1 for piece in order.shards().values())
    seconds = gathering + planning * gathered / max(placed, 1)
    hours = seconds * placed * shrink / max(gathered, 1) / 3600
    settings = assembly.order().settings
    disk = (stored_bytes(order.table) + size * placed / max(gathered, 1)) * shrink
    # order and tokens once more, between the two passes
    notes = [f"until the shards are made, about {file_size(disk)} of disk more"] if placed else []
    return replace(
        nothing,
        seconds=seconds,
        amounts={"tokens": float(gathered)},
        totals={"rows": rows * shrink, "tokens": placed * shrink},
        worker_hours=hours,
        cpu_hours=hours * settings.resources.cpus,
        resources=settings.resources,
        disk_bytes=disk,
        note="; ".join([*_left_out(order, units, last), *_unknown(settings), *notes]),
    )


def _unknown(settings: InterleaveSettings) -> Iterator[str]:
    if wants_clips(settings):
        yield "a sample does not tell which clips repeat others or are unusual: all count as kept"


def _corpus(tracks: Iterable[Track], shrink: float) -> list[UnitSamples]:
    """Repeat each track's samples to their number in the corpus divided by `shrink`."""
    units: list[UnitSamples] = []
    for track in tracks:
        number = round(track.kept.num_rows * track.scale / shrink)
        for table in _copies(track.kept, number):
            # A copy is not a duplicate of the sample, so it gets other ids.
            unit = unit_samples(len(units), track.units[0].unit, partial(pa.Table.slice, table))
            units.append(replace(unit, id_hashes=unit.id_hashes + np.int64(len(units))))
    return units


def _copies(table: pa.Table, number: int) -> Iterator[pa.Table]:
    copies, rest = divmod(number, table.num_rows)
    for _ in range(copies):
        yield table
    if rest:
        rows = np.random.default_rng(0).permutation(table.num_rows)[:rest]
        yield table.take(pa.array(np.sort(rows)))


def _gather(order: Order, units: list[UnitSamples]) -> tuple[int, int]:
    """Make shards, the last one perhaps in part; return their tokens and the bytes of the files."""
    tokens = size = 0
    for piece in order.shards().values():
        if tokens >= _MAX_TOKENS:
            break
        lengths = np.cumsum(piece["stop"].to_numpy() - piece["start"].to_numpy())
        row = piece["row"].to_numpy()
        last = min(int(np.searchsorted(lengths, _MAX_TOKENS - tokens)), len(row) - 1)
        part = piece.slice(0, int(np.searchsorted(row, row[last], side="right")))
        rows = gather_rows(part, lambda k: units[k].read(), [unit.name for unit in units])
        tokens += sum(len(chunk.flatten()) for chunk in rows["input_ids"].chunks)
        size += stored_bytes(rows)
    return tokens, size


def _left_out(order: Order, units: list[UnitSamples], tracks: list[Track]) -> Iterator[str]:
    """Say which share of a modality's samples is left out of the shards, by reason."""
    modalities = {track.units[0].unit: track.modality for track in tracks}
    total, without = Counter(), Counter()
    for unit in units:
        total[modalities[unit.name]] += len(unit.lengths)
    for table in order.excluded(REJECTED):
        modality = modalities[split_location(table["location"][0].as_py())[0]]
        without.update((reason, modality) for reason in table["reason"].to_pylist())
    for (reason, modality), number in sorted(without.items()):
        if number / total[modality] > 0.005:
            yield _LEFT_OUT[reason].format(number / total[modality], modality)
