"""What a run will cost, measured on a few of the user's own clips before anything runs, and how long a
machine takes for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from koe.schema import SPEECH, TEXT, Unit
from pipeline.config.models import PipelineConfig
from pipeline.estimate.machine import Machine, OnMachine, StageLoad, on_machine
from pipeline.estimate.sample import SpeechStages, measure_speech, measure_text
from pipeline.estimate.shards import estimate_shards
from pipeline.estimate.timed import Clock
from pipeline.estimate.track import StageEstimate, Track, sum_tracks
from pipeline.estimate.training import estimate_training
from pipeline.jobs.assembly import Assembly
from pipeline.run_dir.plan import Plan

__all__ = ["StageEstimate", "estimate_run", "on_machine_of"]

OnProgress = Callable[[str], None]

_MIN_CLIPS = 20  # of a source, however small its share
_TEXT_SHARE = 0.1  # of the time: tokenizing is quick
_MIN_SHARE = 0.25  # of the time is left for measuring, however long the models take to load


def estimate_run(
    config: PipelineConfig,
    plan: Plan,
    num_clips: int = 200,
    on_progress: OnProgress = lambda what: None,
    seconds: float = 30.0,
    clock: Clock = time.perf_counter,
) -> list[StageEstimate]:
    """Measure every stage on at most about `num_clips` clips and on some units of text.

    It takes about `seconds` of the `clock`, but measures a few clips of each source in any case.
    Each source has its share of the clips and of the time, and is scaled up separately.
    Raises: ConfigError, as a run would before any work.
    """
    started = clock()
    assembly = Assembly(config)
    speech, text = _units_by_source(plan, SPEECH), _units_by_source(plan, TEXT)
    tracks: list[Track] = []
    if speech:
        on_progress("loading the models")
        stages = SpeechStages(assembly, clock)
        share = 1 - _TEXT_SHARE if text else 1.0
        left = share * max(seconds - (clock() - started), _MIN_SHARE * seconds)
        wanted = _wanted(speech, num_clips)
        for name, number in wanted.items():
            on_progress(f"measuring at most {number} clips of {name}")
            part = left * number / sum(wanted.values())
            tracks += measure_speech(stages, speech[name], number, part)
    for name, units in text.items():
        on_progress(f"measuring samples of {name}")
        part = _TEXT_SHARE * seconds / len(text)
        tracks.append(measure_text(assembly.tokenize_text(name), units, part, clock))
    shards = estimate_shards(assembly, tracks, clock)
    names = dict.fromkeys((track.stage, track.modality) for track in tracks)
    estimates = [
        sum_tracks([track for track in tracks if (track.stage, track.modality) == name])
        for name in names
    ]
    return [*estimates, shards, estimate_training(config, shards)] if shards else estimates


def on_machine_of(estimates: Sequence[StageEstimate], machine: Machine) -> list[OnMachine]:
    """Tell what each chain of stages takes on a machine; the chains follow one another."""
    chains: dict[str, list[StageLoad]] = {}
    for item in estimates:
        if item.resources is None or item.worker_hours is None:  # training has GPUs of its own
            continue
        load = StageLoad(
            stage=item.stage,
            resources=item.resources,
            worker_seconds=3600 * item.worker_hours,
            decode_seconds=3600 * item.decode_hours,
            read_bytes=item.read_bytes,
        )
        chains.setdefault(item.chain, []).append(load)
    return [on_machine(chain, machine) for chain in chains.values()]


def _wanted(sources: dict[str, list[Unit]], num_clips: int) -> dict[str, int]:
    """Divide the clips among the sources in proportion to their records."""
    records = {name: sum(unit.records for unit in units) for name, units in sources.items()}
    total = sum(records.values())
    return {
        name: min(number, max(_MIN_CLIPS, math.ceil(num_clips * number / total)))
        for name, number in records.items()
    }


def _units_by_source(plan: Plan, modality: str) -> dict[str, list[Unit]]:
    """Return the units of each source of a modality, without the sources that hold no record."""
    units: dict[str, list[Unit]] = {}
    for unit in plan.units_of(modality):
        units.setdefault(unit.source, []).append(unit)
    names = [name for name in plan.modalities if name in units]
    return {name: units[name] for name in names if any(unit.records for unit in units[name])}
