"""What a run will cost, measured on a few clips of the user's own before anything runs.

The stages themselves take a sample of the corpus through, one worker in this process; nothing is
written. Clips are drawn from units spread over each source, and each source is scaled by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.assembly import Assembly
from pipeline.config import PipelineConfig, WorkerConfig
from pipeline.plan import Plan
from pipeline.schema import SPEECH, TEXT, UNIT, Unit
from pipeline.stage import Outcome, Stage, Transform
from stages.interleave import gather_rows, plan_order, unit_samples
from stages.mix import mix

_CLIPS_OF_A_UNIT = 25  # more units, fewer clips of each: neighbours in a corpus resemble each other
_LEAST_CLIPS = 20  # of a source, however small its share
_TEXT_UNITS = 2
# 20.9 GFLOP a token for Llama 3.2-3B with Orpheus' vocabulary at 2,048 tokens (causal count), on
# half of the 790 dense BF16 TFLOP/s that an H100 reaches: what good trainers of this size get.
_TRAIN_GFLOP_PER_TOKEN = 20.9
_TRAIN_TFLOPS = 395.0

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class StageEstimate:
    """What one stage will take.

    `measured` records took `seconds` of one worker; `amounts` are what they held, by unit
    (windows, audio seconds, tokens). `records` and `totals` are the corpus'. `error` is the
    relative half-width of a 95 % interval of the hours, from the spread between clips alone.
    """

    stage: str
    measured: int
    seconds: float
    amounts: dict[str, float]
    records: float
    totals: dict[str, float]
    worker_hours: float
    cpu_hours: float
    gpu_hours: float
    disk_bytes: float
    error: float | None = None
    note: str = ""

    def rates(self) -> dict[str, float]:
        """Return records and amounts a second of one worker."""
        amounts = {"records": float(self.measured), **self.amounts}
        return {name: value / self.seconds for name, value in amounts.items() if self.seconds > 0}


def estimate_run(
    config: PipelineConfig,
    plan: Plan,
    num_clips: int = 200,
    on_progress: OnProgress = lambda what: None,
) -> list[StageEstimate]:
    """Measure every stage on about `num_clips` clips and two units of each text source.

    Raises: ConfigError, as a run would before any work.
    """
    assembly = Assembly(config)
    speech = [source for source, modality in plan.modalities.items() if modality == SPEECH]
    total = sum(_records(plan, source) for source in speech)
    tracks: list[_Track] = []
    stages = _SpeechStages(assembly) if total else None
    for source in speech:
        records = _records(plan, source)
        wanted = max(_LEAST_CLIPS, math.ceil(num_clips * records / total)) if total else 0
        if stages and wanted:
            on_progress(f"measuring {min(wanted, records)} clips of {source}")
            tracks += _measure_speech(stages, _units(plan, source), wanted)
    for source in (name for name, modality in plan.modalities.items() if modality == TEXT):
        units = _spread(_units(plan, source), _TEXT_UNITS)
        if units:
            on_progress(f"measuring {sum(unit.records for unit in units)} samples of {source}")
            tracks.append(_measure_text(assembly.tokenize_text(source), plan, source, units))
    estimates = [_estimate(config, name, tracks) for name in _names(tracks)]
    return [*estimates, *_shards_and_training(assembly, tracks)]


@dataclass(frozen=True)
class _Track:
    """One stage on the sample of one source; `scale` takes its sample to the whole source."""

    stage: str
    config: str  # section of the configuration that has the workers
    modality: str
    measured: int
    seconds: float
    each: np.ndarray  # work of each record, for its spread
    amounts: dict[str, float]
    scale: float
    num_bytes: int
    kept: pa.Table


class _SpeechStages:
    """The stages of speech, their models loaded when first needed."""

    def __init__(self, assembly: Assembly) -> None:
        self.ingest, self.score, self.encode, self.tokenize = (
            _Opened(stage)
            for stage in (
                assembly.ingest(),
                assembly.score(),
                assembly.encode(),
                assembly.tokenize_speech(),
            )
        )


class _Opened:
    """A stage that is loaded and warm before its first measurement."""

    def __init__(self, stage: Stage) -> None:
        self.name = stage.name
        self._open: Callable[[], Transform] = cache(stage.open)
        self._warm = False

    def run(self, table: pa.Table, warm_up: bool = True) -> tuple[Outcome, float]:
        transform = self._open()
        if warm_up and not self._warm and table.num_rows:
            transform(table.slice(0, 1))
            self._warm = True
        started = time.perf_counter()
        outcome = transform(table)
        return outcome, time.perf_counter() - started


def _measure_speech(stages: _SpeechStages, units: Sequence[Unit], wanted: int) -> list[_Track]:
    records = sum(unit.num_records for unit in units)
    chosen = _spread(units, math.ceil(wanted / _CLIPS_OF_A_UNIT))
    read, seconds, drawn = 0, 0.0, []
    for unit in chosen:
        outcome, spent = stages.ingest.run(_descriptor(unit), warm_up=False)
        read, seconds = read + unit.num_records, seconds + spent
        drawn.append(_draw(outcome.kept, math.ceil(wanted / len(chosen)), unit.unit))
    clips = pa.concat_tables(drawn)
    kept = sum(len(table) for table in drawn)
    ingested = _track("ingest", "ingest", SPEECH, read, seconds, clips, records / max(read, 1))
    tracks = [replace(ingested, num_bytes=int(_num_bytes(clips) * read / max(kept, 1)))]
    scale = records / max(kept, 1)
    for stage in (stages.score, stages.encode, stages.tokenize):
        if not clips.num_rows:
            break
        outcome, seconds = stage.run(clips)
        tracks.append(
            _track(stage.name, stage.name, SPEECH, clips.num_rows, seconds, outcome.kept, scale)
        )
        clips = outcome.kept
    return tracks


def _measure_text(stage: Stage, plan: Plan, source: str, units: Sequence[Unit]) -> _Track:
    opened = _Opened(stage)
    tables, seconds = [], 0.0
    for unit in units:
        outcome, spent = opened.run(_descriptor(unit), warm_up=False)
        tables.append(outcome.kept)
        seconds += spent
    read = sum(unit.num_records for unit in units)
    scale = _records(plan, source) / read
    return _track("tokenize", "tokenize", TEXT, read, seconds, pa.concat_tables(tables), scale)


def _track(
    stage: str,
    config: str,
    modality: str,
    measured: int,
    seconds: float,
    kept: pa.Table,
    scale: float,
) -> _Track:
    amounts, each = {}, np.ones(kept.num_rows)
    for column, name in (("windows", "windows"), ("seconds", "audio-s")):
        wanted = {"score": "windows", "encode": "seconds"}.get(stage)
        if column == wanted and column in kept.column_names:
            each = kept[column].to_numpy().astype(float)
            amounts[name] = float(each.sum())
    if "input_ids" in kept.column_names:
        lengths = [chunk.value_lengths().to_numpy() for chunk in kept["input_ids"].chunks]
        each = np.concatenate([np.zeros(0), *lengths])
        amounts["tokens"] = float(each.sum())
    size = _num_bytes(kept)
    return _Track(stage, config, modality, measured, seconds, each, amounts, scale, size, kept)


def _estimate(config: PipelineConfig, name: tuple[str, str], tracks: list[_Track]) -> StageEstimate:
    mine = [track for track in tracks if (track.stage, track.modality) == name]
    settings: WorkerConfig = getattr(config, mine[0].config)
    hours = sum(track.seconds * track.scale for track in mine) / 3600
    units = sorted({unit for track in mine for unit in track.amounts})
    return StageEstimate(
        stage=name[0] if name[1] == SPEECH else f"{name[0]} (text)",
        measured=sum(track.measured for track in mine),
        seconds=sum(track.seconds for track in mine),
        amounts={unit: sum(track.amounts.get(unit, 0.0) for track in mine) for unit in units},
        records=sum(track.measured * track.scale for track in mine),
        totals={
            unit: sum(track.amounts.get(unit, 0.0) * track.scale for track in mine)
            for unit in units
        },
        worker_hours=hours,
        cpu_hours=hours * settings.cpus_per_worker,
        gpu_hours=hours * settings.gpus_per_worker,
        disk_bytes=sum(track.num_bytes * track.scale for track in mine),
        error=_relative_error(mine),
    )


def _relative_error(tracks: Iterable[_Track]) -> float | None:
    """Return the 95 % half-width of the total work, as a share of it."""
    variance = total = 0.0
    for track in tracks:
        if len(track.each) < 2 or track.stage == "ingest":
            return None
        variance += len(track.each) * float(track.each.var(ddof=1)) * track.scale**2
        total += float(track.each.sum()) * track.scale
    return 1.96 * math.sqrt(variance) / total if total else None


def _shards_and_training(assembly: Assembly, tracks: list[_Track]) -> list[StageEstimate]:
    last = [track for track in tracks if track.stage == "tokenize" and track.kept.num_rows]
    if not last:
        return []
    order = assembly.order()
    natural = replace(order.settings, ratio="natural")
    samples = [track.kept for track in last]
    started = time.perf_counter()
    planned = plan_order(
        [unit_samples(k, str(k), lambda s=s: s) for k, s in enumerate(samples)],
        natural,
    )
    size = rows = tokens = 0
    for piece in _by_shard(planned.tables()):
        shard = gather_rows(piece, samples.__getitem__, [str(k) for k in range(len(samples))])
        size, rows = size + _num_bytes(shard), rows + shard.num_rows
        tokens += sum(len(chunk.flatten()) for chunk in shard["input_ids"].chunks)
    seconds = time.perf_counter() - started
    used, left = _tokens_by_ratio(order.settings, last)
    measured = sum(len(table) for table in samples)
    hours = seconds * used / max(tokens, 1) / 3600
    interleave = StageEstimate(
        stage="interleave",
        measured=measured,
        seconds=seconds,
        amounts={"tokens": float(tokens)},
        records=sum(track.kept.num_rows * track.scale for track in last),
        totals={"tokens": used},
        worker_hours=hours,
        cpu_hours=hours * assembly.config.interleave.cpus_per_worker,
        gpu_hours=0.0,
        disk_bytes=size * used / max(tokens, 1),
        note=left,
    )
    return [interleave, *_training(assembly.config, used)]


def _by_shard(tables: Iterable[pa.Table]) -> list[pa.Table]:
    order = pa.concat_tables(list(tables))
    names = order["shard"].to_numpy(zero_copy_only=False)
    cuts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
    return [order.slice(a, b - a) for a, b in pairwise(cuts) if b > a]


def _tokens_by_ratio(settings: Any, tracks: list[_Track]) -> tuple[float, str]:
    """Return the tokens that the ratio lets into the shards, and what it leaves out."""
    of = {
        modality: sum(
            track.amounts["tokens"] * track.scale for track in tracks if track.modality == modality
        )
        for modality in (TEXT, SPEECH)
    }
    # A thousandth of the rows mix as all do, and tell the shares.
    rows = {name: round(tokens / settings.max_row_tokens) for name, tokens in of.items()}
    shrink = max(1, sum(rows.values()) // 10_000)
    small = {name: count // shrink for name, count in rows.items()}
    _, text_left, speech_left = mix(small[TEXT], small[SPEECH], settings.ratio)
    left = {TEXT: text_left, SPEECH: speech_left}
    used = {
        name: of[name] * (1 - left[name] / small[name]) if small[name] else of[name] for name in of
    }
    told = [
        f"the ratio leaves out {left[name] / small[name]:.0%} of {name}"
        for name in of
        if small[name] and left[name] / small[name] > 0.005
    ]
    return sum(used.values()), "; ".join(told)


def _training(config: PipelineConfig, tokens: float) -> list[StageEstimate]:
    train = config.train
    if train.base_model is None:
        return []  # a tiny model for trials
    of_a_step = (
        train.workers
        * train.micro_batch_rows
        * train.accumulation_steps
        * config.interleave.max_row_tokens
    )
    steps = train.max_steps
    trained = float(steps * of_a_step)
    hours = trained * _TRAIN_GFLOP_PER_TOKEN / (_TRAIN_TFLOPS * 1e3) / 3600
    return [
        StageEstimate(
            stage="train",
            measured=0,
            seconds=0.0,
            amounts={},
            records=steps,
            totals={"tokens": trained},
            worker_hours=hours,
            cpu_hours=0.0,
            gpu_hours=hours,
            disk_bytes=0.0,
            note=f"not measured: {_TRAIN_GFLOP_PER_TOKEN} GFLOP a token (3 B parameters) at "
            f"{_TRAIN_TFLOPS:g} TFLOP/s a GPU; {trained / max(tokens, 1):.2f} epochs",
        )
    ]


def _names(tracks: Iterable[_Track]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((track.stage, track.modality) for track in tracks))


def _records(plan: Plan, source: str) -> int:
    return sum(unit.num_records for unit in _units(plan, source))


def _units(plan: Plan, source: str) -> list[Unit]:
    return [unit for unit in plan.units if unit.source == source]


def _spread(units: Sequence[Unit], number: int) -> list[Unit]:
    """Choose units evenly over their order."""
    places = np.unique(np.linspace(0, len(units) - 1, min(number, len(units))).round().astype(int))
    return [units[place] for place in places]


def _draw(clips: pa.Table, number: int, seed: str) -> pa.Table:
    """Draw clips of a unit, the same at every call, in their order."""
    rng = np.random.default_rng(list(seed.encode()))
    chosen = rng.permutation(clips.num_rows)[:number]
    return clips.take(pa.array(np.sort(chosen)))


def _descriptor(unit: Unit) -> pa.Table:
    return pa.Table.from_pylist([asdict(unit)], schema=UNIT)


def _num_bytes(table: pa.Table) -> int:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().size
