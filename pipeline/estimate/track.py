"""One stage on the sample of one source, and what the stage will cost for all sources together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa

from koe.dataflow import INTERLEAVE, work_measure
from koe.schema import SPEECH, Unit
from koe.stage import Resources
from pipeline.estimate.uncertainty import UNKNOWN, Uncertainty
from pipeline.run_dir.storage import BATCH_ROWS

# What a stage's work may be counted in (see koe.dataflow): a column of its output, and the unit
# that is shown.
_COUNTED = {
    "windows": ("windows", "windows"),
    "seconds": ("seconds", "audio-s"),
    "tokens": ("input_ids", "tokens"),
}


@dataclass(frozen=True)
class StageEstimate:
    """What one stage will cost.

    `measured` records took `seconds` of one worker; `amounts` are what they held, by unit
    (windows, audio seconds, tokens). `records` and `totals` are those of the corpus. `error` is the
    relative half-width of a 95 % interval of the work, from the spread between records and between
    units: 0 where all of them were measured, None where too few were measured to tell. It leaves
    out that the machine may be busy. Hours are None where they are not known; `note` says why.
    `disk_bytes` are those of the stage's tables, without receipts and excluded records.
    `decode_hours` are those of one core that decodes and resamples, part of `cpu_hours` on a CPU;
    `read_bytes` are those of audio. `resources`: of one worker, None of what is no stage.
    """

    stage: str
    measured: int
    seconds: float
    amounts: dict[str, float]
    records: float
    totals: dict[str, float]
    worker_hours: float | None
    cpu_hours: float | None
    gpu_hours: float | None
    disk_bytes: float
    error: float | None = None
    note: str = ""
    decode_hours: float = 0.0
    read_bytes: float = 0.0
    resources: Resources | None = None
    modality: str = SPEECH

    @property
    def chain(self) -> str:
        """Name what the stages that work at the same time have in common."""
        return INTERLEAVE if self.stage == INTERLEAVE else self.modality

    def rates(self) -> dict[str, float]:
        """Return the records and amounts per second of one worker."""
        amounts = {"records": float(self.measured), **self.amounts}
        return {name: value / self.seconds for name, value in amounts.items() if self.seconds > 0}


@dataclass(frozen=True)
class Track:
    """One stage on the sample of one source.

    `measured` records took `seconds`, and `kept` is the stage's output for them, in plan order.
    `scale` times their work is that of all `records` of the source that reach the stage, of which
    it will keep `records_kept`; `uncertainty` is that of this product. `units`: all of the source.
    `decode_seconds`: of one core, for the records measured; `read_bytes`: of audio, for all records.
    """

    stage: str
    modality: str
    measured: int
    seconds: float
    kept: pa.Table
    records: float
    records_kept: float
    scale: float
    uncertainty: Uncertainty
    units: Sequence[Unit]
    resources: Resources = field(default_factory=Resources)
    decode_seconds: float = 0.0
    read_bytes: float = 0.0
    note: str = ""

    def amounts(self) -> dict[str, float]:
        measure = work_measure(self.stage)
        if not measure:
            return {}
        return {_COUNTED[measure][1]: float(work_of(self.stage, self.kept).sum())}

    def disk_bytes(self) -> float:
        """Return the bytes of all tables of the source: a part per unit, the rest per record."""
        half = self.kept.num_rows // 2
        together = stored_bytes(self.kept)
        apart = stored_bytes(self.kept.slice(0, half)) + stored_bytes(self.kept.slice(half))
        per_unit = apart - together  # two files have their fixed part twice
        return per_unit * len(self.units) + (together - per_unit) * self.scale


def sum_tracks(tracks: Sequence[Track]) -> StageEstimate:
    """Sum up the tracks of one stage and modality over the sources."""
    stage, modality, needs = tracks[0].stage, tracks[0].modality, tracks[0].resources
    hours = sum(track.seconds * track.scale for track in tracks) / 3600
    amounts = [track.amounts() for track in tracks]
    error = _uncertainty(tracks).half_width()
    is_unknown = error is None and any(sum(amount.values()) for amount in amounts)
    notes = ["too few records were measured to tell the error"] if is_unknown else []
    notes += dict.fromkeys(track.note for track in tracks if track.note)
    return StageEstimate(
        stage=stage if modality == SPEECH else f"{stage} ({modality})",
        measured=sum(track.measured for track in tracks),
        seconds=sum(track.seconds for track in tracks),
        amounts={unit: sum(amount[unit] for amount in amounts) for unit in amounts[0]},
        records=sum(track.records for track in tracks),
        totals={
            unit: sum(a[unit] * track.scale for a, track in zip(amounts, tracks, strict=True))
            for unit in amounts[0]
        },
        worker_hours=hours,
        cpu_hours=hours * needs.cpus,
        gpu_hours=hours * needs.gpus,
        disk_bytes=sum(track.disk_bytes() for track in tracks),
        error=error,
        note="; ".join(notes),
        decode_hours=sum(track.decode_seconds * track.scale for track in tracks) / 3600,
        read_bytes=sum(track.read_bytes for track in tracks),
        resources=needs,
        modality=modality,
    )


def _uncertainty(tracks: Sequence[Track]) -> Uncertainty:
    """Return how uncertain the total work of the sources is; UNKNOWN where there is no work."""
    totals = [sum(track.amounts().values()) * track.scale for track in tracks]
    if not sum(totals):
        return UNKNOWN
    parts = zip(tracks, totals, strict=True)
    return reduce(add, (t.uncertainty.weighed(work / sum(totals)) for t, work in parts if work))


def work_of(stage: str, kept: pa.Table) -> np.ndarray:
    """Count the work of each record that a stage kept, float64 [kept]."""
    column = kept[_COUNTED[work_measure(stage)][0]]
    if pa.types.is_list(column.type):
        column = pa.chunked_array([c.value_lengths() for c in column.chunks], pa.int32())
    return column.to_numpy().astype(float)


def stored_bytes(table: pa.Table) -> int:
    """Count the bytes of the Arrow file that a run would write of a table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=BATCH_ROWS)
    return sink.getvalue().size
