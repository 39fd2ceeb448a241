"""Segments of long recordings: what they cost, compared with the same segments as separate files.

    python -m benchmarks.long_recordings [--minutes 20] [--repeats 3]

Real speech is written as one recording per format, and its segments of 3 s as files of their own, in the
same format. Both are read through a manifest of one unit: ingest, then decoding and resampling to
16 kHz as for scoring, once in their order and once in a random one, and then the whole score stage for
some of the segments. The sides take turns. Seconds are those of CPU time, and the files are in the page
cache.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import soundfile
from rich.console import Console
from rich.table import Table

from benchmarks.clips import add_data_option, recordings
from benchmarks.results import run_command, write_figures
from koe.schema import unit_table
from stages.clips import load_clips, load_file
from stages.dnsmos.engines import resolve_engine
from stages.dnsmos.scorer import SCORER_HZ, find_model
from stages.ingest import IngestStage
from stages.score import ScoreStage
from stages.settings import ScoreConfig
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig

AUDIO_HZ, SEGMENT_SECONDS = 24_000, 3
FORMATS: dict[str, tuple[str, str]] = {
    "WAV": ("WAV", "PCM_16"),
    "FLAC": ("FLAC", "PCM_16"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
    "Opus": ("OGG", "OPUS"),
    "Vorbis": ("OGG", "VORBIS"),
}
LONG, SEPARATE = "one recording", "separate files"
INGEST, DECODE, SHUFFLED, SCORE = "ingest", "decode", "decode, random order", "score"
UNITS = {SCORE: "windows/s"}
Side = dict[str, Callable[[], float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scored", type=int, default=16, help="segments to score")
    parser.add_argument("--no-result", action="store_true")
    add_data_option(parser)
    options = parser.parse_args()
    audio = _speech(options.minutes * 60, options.data)
    score = _scorer()
    speeds: dict[str, dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            sides = _sides(Path(folder) / name, name, audio, score, options.scored)
            speeds[name] = _measure(sides, options.repeats)
            print(f"{name}: measured", file=sys.stderr, flush=True)
    figures = {
        name: {what: _compared(**sides) for what, sides in of.items()}
        for name, of in speeds.items()
    }
    _print(figures)
    if not options.no_result:
        path = write_figures(
            "long_recordings",
            peer="the same segments as separate files",
            ratio=min(found["ratio"] for of in figures.values() for found in of.values()),
            unit="audio-seconds (score: windows) per second of CPU time",
            minutes=options.minutes,
            segment_seconds=SEGMENT_SECONDS,
            scored=options.scored,
            formats=figures,
        )
        print(f"wrote {path.name}")
    return 0


def _speech(seconds: int, data: Path) -> np.ndarray:
    """Return float32 [samples] at AUDIO_HZ: the recordings, one after another, as often as needed."""
    parts = [load_file(str(path), AUDIO_HZ)[0] for path in recordings(data)[:40]]
    return np.resize(np.concatenate(parts), seconds * AUDIO_HZ).clip(-1, 1)


def _scorer() -> Callable[[pa.Table], int]:
    """Return what scores clips and counts their windows."""
    engine = resolve_engine("auto", "cpu", "fp32")
    settings = ScoreConfig().model_copy(update={"engine": engine})
    score = ScoreStage(settings, find_model()).open()
    return lambda clips: sum(score(clips).kept["windows"].to_pylist())


def _sides(
    folder: Path, name: str, audio: np.ndarray, score: Callable[[pa.Table], int], num_scored: int
) -> dict[str, Side]:
    """Write both kinds of files, and return what is measured of each."""
    folder.mkdir()
    container, subtype = FORMATS[name]

    def write(file: str, samples: np.ndarray) -> str:
        with soundfile.SoundFile(
            folder / file, "w", AUDIO_HZ, 1, subtype, format=container
        ) as opened:
            for at in range(
                0, len(samples), AUDIO_HZ
            ):  # libvorbis puts what it is given on the stack
                opened.write(samples[at : at + AUDIO_HZ])
        return file

    size = SEGMENT_SECONDS * AUDIO_HZ
    starts = range(0, len(audio) - size + 1, size)
    long = write("long", audio)
    segments = [
        {"audio_filepath": long, "offset": at / AUDIO_HZ, "duration": SEGMENT_SECONDS}
        for at in starts
    ]
    files = [{"audio_filepath": write(f"{at}", audio[at : at + size])} for at in starts]
    order = random.Random(0).sample(range(len(segments)), len(segments))
    return {
        LONG: _side(folder / "long.jsonl", segments, order, score, num_scored),
        SEPARATE: _side(folder / "files.jsonl", files, order, score, num_scored),
    }


def _side(
    manifest: Path,
    records: list[dict],
    order: list[int],
    score: Callable[[pa.Table], int],
    num_scored: int,
) -> Side:
    lines = [json.dumps({"id": str(n), "text": "speech", **r}) for n, r in enumerate(records)]
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = SpeechSourceConfig(
        name="speech",
        kind="manifest",
        paths=[str(manifest)],
        fields={"start_seconds": "offset", "seconds": "duration"},  # pyright: ignore[reportArgumentType]
    )
    source = speech_source(config, len(records))
    stage = IngestStage((source,))

    def ingest() -> pa.Table:
        kept = stage.open()(unit_table(list(source.units()))).kept
        assert kept.num_rows == len(records), "a segment is not read"
        return kept

    def decode(clips: pa.Table) -> float:
        audios = list(load_clips(clips, SCORER_HZ))
        return sum(len(audio) for audio in audios if isinstance(audio, np.ndarray)) / SCORER_HZ

    clips = ingest()
    shuffled = clips.take(pa.array(order))
    return {
        INGEST: lambda: sum(ingest()["seconds"].to_pylist()),
        DECODE: lambda: decode(clips),
        SHUFFLED: lambda: decode(shuffled),
        SCORE: lambda: score(shuffled.slice(0, num_scored)),
    }


def _measure(sides: dict[str, Side], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Return how much each side does per second of CPU time, by what is measured."""
    speeds: dict[str, dict[str, list[float]]] = {}
    for what in (INGEST, DECODE, SHUFFLED, SCORE):
        speeds[what] = {side: [] for side in sides}
        for repeat in range(repeats):
            for side in list(sides)[:: 1 if repeat % 2 else -1]:
                begin = time.process_time()
                done = sides[side][what]()
                speeds[what][side].append(done / (time.process_time() - begin))
    return speeds


def _compared(**sides: list[float]) -> dict[str, float]:
    ours, theirs = sides[LONG], sides[SEPARATE]
    ratio = median(mine / other for mine, other in zip(ours, theirs, strict=True))
    return {
        "ratio": round(ratio, 3),
        "ours": round(median(ours), 1),
        "theirs": round(median(theirs), 1),
    }


def _print(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    table = Table("format", "what", LONG, SEPARATE, "ratio")
    for name, of in figures.items():
        for what, found in of.items():
            unit = UNITS.get(what, "audio-s/s")
            ours, theirs = f"{found['ours']:,.1f} {unit}", f"{found['theirs']:,.1f}"
            table.add_row(name, what, ours, theirs, f"{found['ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    run_command(main)
