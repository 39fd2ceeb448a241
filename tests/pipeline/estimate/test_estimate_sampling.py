"""Samples of a made-up source tell the whole of it: without bias, and as surely as they say."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from koe.schema import SPEECH, Unit
from koe.stage import Outcome, Resources
from pipeline.estimate.sample import measure_speech
from pipeline.estimate.timed import take_clips
from pipeline.estimate.track import Track
from stages.dnsmos.scorer import SCORER_HZ, window_starts

THRESHOLD = 2.5
WINDOW_SECONDS, ENCODING_SECONDS = 0.12, 0.08  # of a window, of a second of audio
NUM_UNITS, UNIT_CLIPS = 40, 50
DECODING_SECONDS, BYTES = 0.001, 5000  # of a core for a second of audio; of a recording


def make_source() -> pa.Table:
    """Draw clips whose units differ in length and score, long ones score badly, some are broken."""
    rng = np.random.default_rng(7)
    unit = np.repeat(np.arange(NUM_UNITS), UNIT_CLIPS)
    typical, quality = rng.normal(1.5, 0.25, NUM_UNITS), rng.normal(0, 0.2, NUM_UNITS)
    seconds = np.exp(typical[unit] + rng.normal(0, 0.5, len(unit))).round(3)
    windows = [len(window_starts(round(s * SCORER_HZ), "reference")) for s in seconds.tolist()]
    broken_at = rng.choice(["", "ingest", "score", "encode"], len(unit), p=[0.86, 0.06, 0.04, 0.04])
    return pa.table(
        {
            "id": [f"c{n}" for n in range(len(unit))],
            "unit": unit,
            "seconds": seconds,
            "windows": windows,
            "ovrl": 3.2 - 0.1 * seconds + quality[unit] + rng.normal(0, 0.4, len(unit)),
            "broken_at": broken_at,
            "audio_path": [f"c{n // 2}.flac" for n in range(len(unit))],  # two clips of a recording
            "audio_member": [""] * len(unit),
            "audio_offset": [0] * len(unit),
            "audio_bytes": [BYTES] * len(unit),
            "tokens": (85 * seconds + rng.integers(10, 60, len(unit))).astype(int),
        }
    )


SOURCE = make_source()


class Timed:
    """A stage that takes the time its records should, and no other."""

    resources, threads = Resources(), 1

    def __init__(self, name: str) -> None:
        self.name = name

    def warm_up(self, clips: pa.Table) -> None:
        pass

    def run(self, table: pa.Table) -> tuple[Outcome, float]:
        if self.name == "ingest":
            number = int(table["unit"][0].as_py())
            table = SOURCE.slice(number * UNIT_CLIPS, UNIT_CLIPS)
        kept, seconds = through(self.name, table)
        return Outcome(kept, kept.slice(0, 0), kept.slice(0, 0)), seconds


def through(stage: str, clips: pa.Table) -> tuple[pa.Table, float]:
    """Take clips through a stage: what is kept, and the seconds that it takes."""
    sound = clips.filter(np.array(clips["broken_at"].to_pylist()) != stage)
    if stage == "ingest":
        return sound, 0.001 * clips.num_rows
    if stage == "score":
        return sound, WINDOW_SECONDS * sum(clips["windows"].to_pylist())
    if stage == "encode":
        good = clips.filter(clips["ovrl"].to_numpy() > THRESHOLD)
        sound = sound.filter(sound["ovrl"].to_numpy() > THRESHOLD)
        return sound, ENCODING_SECONDS * sum(good["seconds"].to_pylist())
    ids = [[0] * tokens for tokens in clips["tokens"].to_pylist()]
    return sound.append_column("input_ids", pa.array(ids, pa.list_(pa.int32()))), 1e-3


def truth() -> dict[str, tuple[float, float, float]]:
    """Take all clips through: of each stage, records in, work and seconds."""
    found, clips = {}, SOURCE
    for stage, work in (("ingest", ""), ("score", "windows"), ("encode", "seconds")):
        kept, seconds = through(stage, clips)
        found[stage] = (clips.num_rows, sum(kept[work].to_pylist()) if work else 0.0, seconds)
        clips = kept
    found["tokenize"] = (clips.num_rows, sum(clips["tokens"].to_pylist()), 0.0)
    return found


def decode_seconds(stage: str, clips: pa.Table) -> float:
    return DECODING_SECONDS * sum(clips["seconds"].to_pylist())


STAGES = SimpleNamespace(
    windows="reference",
    threshold_ovrl=THRESHOLD,
    decode_seconds=decode_seconds,
    **{name: Timed(name) for name in ("ingest", "score", "encode", "tokenize")},
)


def units(source: str) -> list[Unit]:
    return [
        Unit(str(k), source, SPEECH, "a.tar", "1:1", 0, 1, UNIT_CLIPS) for k in range(NUM_UNITS)
    ]


@cache
def measured(seconds: float, times: int = 100) -> list[dict[str, Track]]:
    """Draw as many samples, tracks by stage each; a source's name decides what is drawn."""
    found = []
    for name in range(times):
        tracks = measure_speech(STAGES, units(f"s{name}"), 10**6, seconds)  # pyright: ignore[reportArgumentType]
        found.append({track.stage: track for track in tracks})
    return found


def whole_work(track: Track) -> float:
    return sum(track.amounts().values()) * track.scale


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "most", "tolerance"), [(10.0, 20, 0.05), (60.0, 100, 0.01)])
def test_the_mean_of_many_samples_is_the_whole(seconds, most, tolerance):
    expected = truth()
    samples = measured(seconds)
    assert np.mean([sample["score"].measured for sample in samples]) < most
    for stage, (records, work, took) in expected.items():
        tracks = [sample[stage] for sample in samples]
        pairs = {"records": ([track.records for track in tracks], records)}
        if work:
            pairs["work"] = ([whole_work(track) for track in tracks], work)
        if took:
            pairs["seconds"] = ([track.seconds * track.scale for track in tracks], took)
        for name, (found, whole) in pairs.items():
            doubt = 3 * float(np.std(found)) / len(found) ** 0.5
            near = pytest.approx(whole, abs=tolerance * whole + doubt)
            assert np.mean(found) == near, (stage, name)


@pytest.mark.parametrize("seconds", [2.0, 10.0, 60.0, 200.0])
@pytest.mark.parametrize("stage", ["score", "encode", "tokenize"])
def test_the_interval_holds_the_truth_as_often_as_it_says(stage, seconds):
    """In 95 of 100 samples, however little time there was for them."""
    _, work, took = truth()[stage]
    inside: list[bool] = []
    for sample in measured(seconds):
        error = sample[stage].uncertainty.half_width() if stage in sample else None
        if error is None:
            continue  # nothing is claimed
        found, spent = whole_work(sample[stage]), sample[stage].seconds * sample[stage].scale
        is_time_right = not took or abs(spent - took) <= error * spent
        inside.append(abs(found - work) <= error * found and is_time_right)
    assert len(inside) >= 90
    assert np.mean(inside) >= 0.95


def test_more_time_makes_the_interval_narrower():
    widths = [
        np.median([sample["encode"].uncertainty.half_width() or np.nan for sample in measured(s)])
        for s in (10.0, 60.0, 200.0)
    ]
    assert widths[0] > 2 * widths[1] > 3 * widths[2]
    assert widths[2] < 0.2


def test_one_unit_does_not_tell_how_the_others_are():
    for sample in measured(0.0, times=5):
        assert all(track.measured >= 1 for track in sample.values())
        assert sample["score"].measured == 8
        assert {track.uncertainty.half_width() for track in sample.values()} == {None}


def test_all_of_a_source_is_itself_and_certain():
    (sample,) = measured(1e9, times=1)
    for stage, (records, work, seconds) in truth().items():
        track = sample[stage]
        assert track.measured == track.records == records
        assert whole_work(track) == pytest.approx(work)
        if seconds:
            assert track.seconds * track.scale == pytest.approx(seconds)
    assert sample["tokenize"].uncertainty.half_width() == 0


@pytest.mark.parametrize("seconds", [0.0, 1.0, 5.0, 20.0])
def test_a_stage_stops_when_its_time_is_up(seconds):
    clips = through("ingest", SOURCE)[0]
    rng = np.random.default_rng(0)
    taken = take_clips(STAGES.score, clips, 10**6, seconds, rng)
    longest = WINDOW_SECONDS * max(clips["windows"].to_pylist())
    assert len(taken.rows) >= 8
    assert 0.6 * seconds <= taken.seconds
    assert len(taken.rows) == 8 or taken.seconds <= 1.2 * seconds + 3 * longest
    few = take_clips(STAGES.score, clips, 5, 1e9, rng)
    assert len(few.rows) == 5


def test_what_is_decoded_and_read_is_told_of_all_clips():
    tracks = measured(1e9, 1)[0]  # all of them
    good = through("score", through("ingest", SOURCE)[0])[0]
    kept, _ = through("encode", good)
    for stage, clips in (("score", good), ("encode", kept)):
        seconds = tracks[stage].decode_seconds * tracks[stage].scale
        assert seconds == pytest.approx(DECODING_SECONDS * sum(clips["seconds"].to_pylist()))
    recordings = len(set(through("ingest", SOURCE)[0]["audio_path"].to_pylist()))
    assert tracks["ingest"].read_bytes == pytest.approx(BYTES * recordings)
    share = kept.num_rows / through("ingest", SOURCE)[0].num_rows
    assert tracks["encode"].read_bytes == pytest.approx(BYTES * recordings * share)
    assert tracks["tokenize"].read_bytes == tracks["tokenize"].decode_seconds == 0
