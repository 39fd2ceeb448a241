"""Measures the stages on a sample of a source, and scales each up to all of the source.

A stage gets only the records that the stage before it kept. What is known of more clips than were
measured is used: the lengths of all clips whose headers were read, the scores of all scored clips.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from koe.schema import SPEECH, TEXT, Unit
from koe.stage import Stage
from koe.vocabulary import CODEC_HZ
from pipeline.estimate.decoding import audio_bytes, decode_seconds, fed
from pipeline.estimate.timed import Clock, Opened, Read, Taken, read_units, take_clips
from pipeline.estimate.track import Track, work_of
from pipeline.estimate.uncertainty import (
    UNKNOWN,
    Uncertainty,
    of_ratio,
    of_records,
    of_sum,
    with_imagined,
)
from pipeline.jobs.assembly import Assembly
from stages.dnsmos.scorer import SCORER_HZ, window_starts
from stages.settings import Windows

_STARVED = 0.8  # of the time: above it the GPU may have waited for decoding
# Of a source's time. The scored clips tell how many of all will pass, and the headers how long
# those are; a few of those that pass are enough to tell the codes and tokens per second.
_SHARES = {"ingest": 0.1, "score": 0.6, "encode": 0.25, "tokenize": 0.05}


class SpeechStages:
    """The stages of speech, their models loaded."""

    def __init__(
        self, assembly: Assembly, clock: Clock, cpu_clock: Clock = time.process_time
    ) -> None:
        self.windows: Windows = assembly.config.score.windows
        self.threshold_ovrl = assembly.config.encode.threshold_ovrl
        score, encode = assembly.score(), assembly.encode()
        self.ingest = Opened(assembly.ingest(), clock)
        self.score = Opened(score, clock, fed(score))
        self.encode = Opened(encode, clock, fed(encode))
        self.tokenize = Opened(assembly.tokenize_speech(), clock)
        self._decoded_hz = {score.name: score.decoded_hz, encode.name: CODEC_HZ}
        self._index_folder, self._cpu_clock = assembly.index_folder, cpu_clock

    def decode_seconds(self, stage: str, clips: pa.Table) -> float:
        """Return the seconds of a core that decode clips for a stage; 0 where it decodes none."""
        hz = self._decoded_hz[stage]
        return decode_seconds(clips, hz, self._index_folder, self._cpu_clock) if hz else 0.0


def measure_speech(
    stages: SpeechStages, units: Sequence[Unit], most: int, seconds: float
) -> list[Track]:
    """Measure all stages on at most `most` clips of a source, in about `seconds` altogether."""
    rng = _rng(units[0].source)
    read = read_units(stages.ingest, units, _SHARES["ingest"] * seconds, rng)
    ingested = _read_track(stages.ingest, SPEECH, read, units, UNKNOWN)
    ingested = replace(ingested, read_bytes=audio_bytes(ingested.kept) * ingested.scale)
    clips = ingested.kept
    if not clips.num_rows:
        return [ingested]

    def take(stage: Opened, before: Track) -> Taken:
        return take_clips(stage, before.kept, most, _SHARES[stage.name] * seconds, rng)

    lengths = clips["seconds"].to_numpy()
    windows = _num_windows(lengths, stages.windows)
    taken = take(stages.score, ingested)
    units_read = _of_units(read, windows, ingested.scale)
    scored = _track(ingested, stages.score, taken, windows, ingested.scale, units_read)
    scored = _with_decoding(stages, stages.score, scored, ingested)
    if not scored.kept.num_rows:
        return [ingested, scored]

    drawn = lengths[taken.rows]
    passes = np.zeros(len(lengths))
    passes[taken.kept_rows] = scored.kept["ovrl"].to_numpy() > stages.threshold_ovrl
    promising = (lengths * passes)[taken.kept_rows]
    scale = ingested.scale * _sum_of_product(lengths, drawn, passes[taken.rows])
    scale /= float(promising.sum()) or 1.0
    passing = _of_passing(read, lengths, passes, taken, ingested.scale)
    passing += _of_units(read, lengths, ingested.scale)
    taken = take(stages.encode, scored)
    encoded = _track(scored, stages.encode, taken, promising, scale, passing)
    encoded = _with_decoding(stages, stages.encode, encoded, ingested)
    if not encoded.kept.num_rows:
        return [ingested, scored, encoded]

    taken = take(stages.tokenize, encoded)
    alike = np.ones(encoded.kept.num_rows)
    tokenized = _track(encoded, stages.tokenize, taken, alike, encoded.scale, encoded.uncertainty)
    return [ingested, scored, encoded, tokenized]


def measure_text(stage: Stage, units: Sequence[Unit], seconds: float, clock: Clock) -> Track:
    """Measure units of a text source, at least one, in about `seconds`."""
    opened = Opened(stage, clock)
    read = read_units(opened, units, seconds, _rng(units[0].source))
    found = _of_units(read, work_of(stage.name, read.kept), _scale(read, units))
    return _read_track(opened, TEXT, read, units, found)


def _read_track(
    stage: Opened, modality: str, read: Read, units: Sequence[Unit], uncertainty: Uncertainty
) -> Track:
    """Scale units that were read up to the source, by the number of records."""
    kept, scale = read.kept, _scale(read, units)
    return Track(
        stage=stage.name,
        modality=modality,
        measured=read.records,
        seconds=read.seconds,
        kept=kept,
        records=sum(unit.records for unit in units),
        records_kept=kept.num_rows * scale,
        scale=scale,
        uncertainty=uncertainty,
        units=units,
        resources=stage.resources,
    )


def _scale(read: Read, units: Sequence[Unit]) -> float:
    return sum(unit.records for unit in units) / max(read.records, 1)


def _track(
    before: Track,
    stage: Opened,
    taken: Taken,
    sizes: np.ndarray,
    scale: float,
    uncertainty: Uncertainty,
) -> Track:
    """Scale up the measurement of some of the clips that `before` kept.

    `sizes` of all those clips are about proportional to the work on them, and 0 where the stage
    will reject them. `scale` times their sum is that of the source; `uncertainty` is that of the
    product.
    """
    drawn = sizes[taken.rows]
    promising = np.count_nonzero(sizes) / len(sizes)
    kept = taken.kept.num_rows / max(np.count_nonzero(drawn), 1)
    scale *= _ratio(sizes, drawn)
    work = np.zeros(len(sizes))
    work[taken.kept_rows] = work_of(stage.name, taken.kept)
    return Track(
        stage=stage.name,
        modality=SPEECH,
        measured=len(taken.rows),
        seconds=taken.seconds,
        kept=taken.kept,
        records=before.records_kept,
        records_kept=before.records_kept * promising * kept,
        scale=scale,
        uncertainty=uncertainty + of_records(work[taken.rows], drawn, 1 / scale if scale else 0.0),
        units=before.units,
        resources=stage.resources,
    )


def _with_decoding(stages: SpeechStages, stage: Opened, track: Track, ingested: Track) -> Track:
    """Add what decoding takes of the clips that the stage kept, and what it reads of all of them."""
    seconds = stages.decode_seconds(stage.name, track.kept)
    share = track.records_kept / max(ingested.records_kept, 1e-9)
    starved = stage.resources.gpus and seconds / stage.threads > _STARVED * track.seconds
    return replace(
        track,
        decode_seconds=seconds,
        read_bytes=ingested.read_bytes * min(share, 1.0) if seconds else 0.0,
        note=f"{stage.threads} threads could hardly feed the GPU, which may be faster"
        if starved
        else "",
    )


def _ratio(sizes: np.ndarray, drawn: np.ndarray) -> float:
    """Return the sum of `sizes` relative to that of those drawn; by number where their sum is 0."""
    if drawn.sum() > 0:
        return float(sizes.sum() / drawn.sum())
    return len(sizes) / len(drawn)


def _sum_of_product(sizes: np.ndarray, drawn: np.ndarray, values: np.ndarray) -> float:
    """Estimate the sum of size x value over all, where only some `values` are known.

    `drawn`: the sizes of those. This is Hartley and Ross' estimator (Nature 174, 1954), which has
    no bias, however few were drawn. The quotient of the sums would let too many seconds pass where
    long clips score worse than short ones.
    """
    if len(drawn) < 2:
        return float(sizes.sum() * values.mean())
    covariance = float(np.cov(drawn, values)[0, 1])
    return max(float(sizes.sum() * values.mean()) + (len(sizes) - 1) * covariance, 0.0)


def _of_units(read: Read, work: np.ndarray, scale: float) -> Uncertainty:
    """Return how uncertain the source's work is, told from that on the kept records of some units.

    It is told by unit, since neighbours in a corpus resemble each other.
    """
    records = np.array([unit.records for unit in read.units], float)
    return of_ratio(_sums_by_unit(read, work), records, 1 / scale if scale else 1.0)


def _of_passing(
    read: Read, lengths: np.ndarray, passes: np.ndarray, taken: Taken, scale: float
) -> Uncertainty:
    """Return how uncertain the result of `_sum_of_product` is, told from the scored clips.

    They are a sample of clips, and of units: the larger of the two uncertainties counts.
    """
    drawn, passed = lengths[taken.rows], passes[taken.rows]
    total = _sum_of_product(lengths, drawn, passed) * len(drawn) / len(lengths)
    imagined, sizes = with_imagined(passed, drawn)
    share = len(drawn) / len(lengths) / scale
    of_clips = of_sum(sizes * (imagined - imagined.mean()), total, share)
    deviations = np.zeros(len(lengths))
    deviations[taken.rows] = drawn * (passed - passed.mean())
    deviations[taken.rows] -= deviations[taken.rows].mean()
    of_units = of_sum(_sums_by_unit(read, deviations), total, 1 / scale)
    known = [found for found in (of_clips, of_units) if not np.isnan(found.variance)]
    return max(known, key=lambda found: found.variance, default=UNKNOWN)


def _sums_by_unit(read: Read, values: np.ndarray) -> np.ndarray:
    """Sum the values of the records kept, float64 [records], by the unit they were read with."""
    ends = np.cumsum([0, *(table.num_rows for table in read.tables)])
    return np.array([values[begin:end].sum() for begin, end in pairwise(ends)])


def _num_windows(lengths: np.ndarray, windows: Windows) -> np.ndarray:
    """Count the windows of clips; `lengths` are their seconds. float64 [clips]."""
    samples = np.rint(lengths * SCORER_HZ).astype(int).tolist()
    return np.array([len(window_starts(n, windows)) if n else 0 for n in samples], float)


def _rng(source: str) -> np.random.Generator:
    return np.random.default_rng(list(source.encode()))  # the same sample at every call
