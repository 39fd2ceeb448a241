"""A corpus of made-up clips and instruction samples, and `koe run` with stages that make up their work.

Everything around the stages is real: sources, plan, runner, ledger, storage, schemas, and the stages'
versions and settings. So every later command finds a finished run. Only what a stage makes of a unit is
drawn at random: lengths of clips (5 s on average), scores, codes, token ids in the Orpheus layout. A
fifth of the clips lies below the threshold.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import soundfile
import yaml

from koe.schema import CLIP, ENCODED, SAMPLE, SCORED, SPEECH, TEXT, units_in
from koe.stage import Exclusions, Outcome, Resources, Stage, Transform
from koe.vocabulary import (
    CODEBOOK_SIZE,
    CODEC_HZ,
    END_OF_AI,
    END_OF_HUMAN,
    END_OF_SPEECH,
    END_OF_TEXT,
    FIRST_AUDIO,
    FRAME_SAMPLES,
    NUM_BASE_TEXT,
    SLOTS,
    START_OF_AI,
    START_OF_HUMAN,
    START_OF_SPEECH,
    START_OF_TEXT,
)
from pipeline.jobs.assembly import Assembly

CLIPS_PER_FILE, SAMPLES_PER_FILE = 1000, 5000  # as many as a unit has: a file is a unit
SAMPLES_PER_CLIP = 0.6  # 9 M to 15 M
THRESHOLD = 2.5
_TEXT = "この文はおよそ三十文字の長さがある読み上げ用の例文です、番号は"
_PROMPT_TOKENS = 30
_SLOT_OFFSETS = FIRST_AUDIO + CODEBOOK_SIZE * np.arange(SLOTS)
_AUDIO, _AUDIO_HZ = "recording.wav", 24_000


def write_corpus(folder: Path, num_clips: int, run_dir: str) -> Path:
    """Write manifests of clips, files of instructions and `pipeline.yaml`; return the latter.

    The clips are parts of one recording of 10 s, each of them a little later than the one before.
    """
    for name in ("clips", "text"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 10 * _AUDIO_HZ)
    soundfile.write(folder / "clips" / _AUDIO, noise.astype(np.float32), _AUDIO_HZ)
    _write_files(folder / "clips", _manifest_line, num_clips, CLIPS_PER_FILE)
    _write_files(
        folder / "text", _text_line, max(1, round(num_clips * SAMPLES_PER_CLIP)), SAMPLES_PER_FILE
    )
    config = {
        "run_dir": run_dir,
        "engine": "inline",
        "sources": {
            "speech": [{"name": "clips", "kind": "manifest", "paths": ["clips/*.jsonl"]}],
            "text": [{"name": "text", "kind": "jsonl", "paths": ["text/*.jsonl"]}],
        },
        "plan": {"clips_per_unit": CLIPS_PER_FILE, "samples_per_unit": SAMPLES_PER_FILE},
        "snac": {"weights": "untrained", "sha256": None},
        "encode": {"threshold_ovrl": THRESHOLD},
        "interleave": {"ratio": "natural"},
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _write_files(folder: Path, line: Callable[[int], str], number: int, per_file: int) -> None:
    for first in range(0, number, per_file):
        lines = map(line, range(first, min(first + per_file, number)))
        path = folder / f"{first // per_file:07d}.jsonl"
        path.write_text("".join(lines), encoding="utf-8")


def _manifest_line(number: int) -> str:
    start = number * 1e-9
    return (
        f'{{"audio_filepath": "{_AUDIO}", "offset": {start:.9f}, "duration": 5.0, '
        f'"text": "{_TEXT}{number}"}}\n'
    )


def _text_line(number: int) -> str:
    record = {"instruction": f"{_TEXT}{number}" * 2, "input": "", "output": f"{_TEXT}{number}" * 6}
    return json.dumps(record, ensure_ascii=False) + "\n"


@contextmanager
def made_up_stages() -> Iterator[None]:
    """Replace the work of all stages before interleave for the time of a run in this process."""
    speech, text = Assembly.speech_stage, Assembly.text_stage

    def speech_stage(assembly: Assembly, name: str) -> Stage:
        return MadeUp(speech(assembly, name), _SPEECH_WORK[name])

    def text_stage(assembly: Assembly, name: str, source: str) -> Stage:
        return MadeUp(text(assembly, name, source), make_text_samples)

    with ExitStack() as stack:
        stack.enter_context(patch.object(Assembly, "speech_stage", speech_stage))
        stack.enter_context(patch.object(Assembly, "text_stage", text_stage))
        yield


@dataclass(frozen=True)
class MadeUp:
    """A stage whose receipts are those of `stage`, and whose outputs `work` makes up."""

    stage: Stage
    work: Callable[[Exclusions, pa.Table], pa.Table]

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def version(self) -> int:
        return self.stage.version

    @property
    def content(self) -> dict[str, Any]:
        return self.stage.content

    @property
    def output_schema(self) -> pa.Schema:
        return self.stage.output_schema

    @property
    def resources(self) -> Resources:
        return self.stage.resources

    def open(self) -> Transform:
        def transform(table: pa.Table) -> Outcome:
            excluded = Exclusions(self.stage.name)
            return excluded.outcome(self.work(excluded, table))

        return transform


def _draws(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def make_clips(excluded: Exclusions, table: pa.Table) -> pa.Table:
    """Make the CLIP table of a unit."""
    (unit,) = units_in(table)
    n, rng = unit.records, _draws(unit.unit)
    columns = {
        "id": [f"clips/{unit.unit}/{k:06d}.flac" for k in range(n)],
        "source": [unit.source] * n,
        "text": [f"{_TEXT}{number}" for number in rng.integers(0, 10**9, n).tolist()],
        "speaker": [None] * n,
        "audio_kind": ["tar"] * n,
        "audio_path": [unit.path] * n,
        "audio_member": [f"{k:06d}.flac" for k in range(n)],
        "audio_offset": np.arange(n) * 100_000,
        "audio_bytes": np.full(n, 99_000),
        "start_seconds": np.zeros(n),
        "seconds": np.clip(rng.lognormal(np.log(5) - 0.18, 0.6, n), 0.4, 60),
        "audio_hz": np.full(n, 24_000, np.int32),
        "channels": np.ones(n, np.int32),
        "channel": [None] * n,
        "source_ovrl": [None] * n,
    }
    return pa.table(columns, schema=CLIP)


def make_scores(excluded: Exclusions, clips: pa.Table) -> pa.Table:
    """Make the SCORED table of a unit's clips."""
    n = clips.num_rows
    rng = _draws(clips["id"][0].as_py() + "score")
    ovrl = np.clip(rng.normal(2.9, 0.45, n), 1, 4.2)
    columns = {name: clips[name] for name in CLIP.names} | {
        "sig": ovrl + rng.normal(0.3, 0.1, n),
        "bak": ovrl + rng.normal(0.8, 0.2, n),
        "ovrl": ovrl,
        "p808": pa.nulls(n, pa.float64()),
        "windows": rng.integers(1, 8, n).astype(np.int32),
        "ovrl_error": np.zeros(n),
        "scorer": ["dnsmos"] * n,
        "codes": pa.nulls(n, SCORED.field("codes").type),
    }
    return pa.table(columns, schema=SCORED)


def make_codes(excluded: Exclusions, scored: pa.Table) -> pa.Table:
    """Reject the clips below the threshold, and make the ENCODED table of the others."""
    ovrl = scored["ovrl"].to_numpy()
    below = scored.filter(pa.array(ovrl <= THRESHOLD)).select(["id", "source", "ovrl"]).to_pylist()
    for row in below:
        detail = f"ovrl {row['ovrl']:.4f} <= {THRESHOLD}"
        excluded.reject(row["id"], row["source"], "below_threshold", detail, f"{row['id']}:x:0")
    kept = scored.filter(pa.array(ovrl > THRESHOLD)).combine_chunks()
    frames = np.ceil(kept["seconds"].to_numpy() * CODEC_HZ / FRAME_SAMPLES).astype(np.int32)
    rng = _draws(scored["id"][0].as_py() + "encode")
    codes = rng.integers(0, CODEBOOK_SIZE, int(frames.sum()) * SLOTS, np.uint16)
    columns = {name: kept[name] for name in SCORED.names if name != "codes"}
    columns |= {"frames": frames, "codes": _lists(frames.astype(np.int64) * SLOTS, codes)}
    return pa.table(columns, schema=ENCODED)


def make_speech_samples(excluded: Exclusions, encoded: pa.Table) -> pa.Table:
    """Make the SAMPLE table of encoded clips: a prompt of 30 tokens and the codes."""
    frames = encoded["frames"].to_numpy()
    codes = encoded["codes"].combine_chunks().flatten().to_numpy().reshape(-1, SLOTS)
    audio = (codes.astype(np.int32) + _SLOT_OFFSETS.astype(np.int32)).ravel()
    rng = _draws(str(encoded["id"][0].as_py()) + "tokenize")
    text = rng.integers(0, NUM_BASE_TEXT, (len(frames), _PROMPT_TOKENS), np.int32)
    marks = [END_OF_TEXT, END_OF_HUMAN, START_OF_AI, START_OF_SPEECH]
    head = _beside([START_OF_HUMAN, START_OF_TEXT], text, marks)
    tail = _beside([END_OF_SPEECH, END_OF_AI], text[:, :0], [])
    sizes = frames.astype(np.int64) * SLOTS
    lists = _joined([(head.ravel(), np.full(len(frames), head.shape[1])), (audio, sizes),
                     (tail.ravel(), np.full(len(frames), 2))])  # fmt: skip
    return _samples(encoded["id"], encoded["source"], SPEECH, frames, lists)


def make_text_samples(excluded: Exclusions, table: pa.Table) -> pa.Table:
    """Make the SAMPLE table of a unit of instructions, of 30 to 2,000 tokens."""
    (unit,) = units_in(table)
    n, rng = unit.records, _draws(unit.unit)
    lengths = np.clip(rng.lognormal(np.log(200), 0.9, n), 20, 2000).astype(np.int64)
    users = np.maximum(lengths // 4, 4)
    user, answer = (
        rng.integers(0, NUM_BASE_TEXT, int(sizes.sum()), np.int32) for sizes in (users, lengths)
    )
    every = np.ones(n, np.int64)
    marks = [[START_OF_HUMAN, START_OF_TEXT], [END_OF_TEXT, END_OF_HUMAN, START_OF_AI],
             [END_OF_TEXT, END_OF_AI]]  # fmt: skip
    opening, turn, closing = ((np.tile(np.array(m, np.int32), n), every * len(m)) for m in marks)
    lists = _joined([opening, (user, users), turn, (answer, lengths), closing])
    ids = [f"text/{unit.unit}/{k:06d}" for k in range(n)]
    return _samples(ids, [unit.source] * n, TEXT, np.zeros(n, np.int32), lists)


def _beside(before: list[int], middle: np.ndarray, after: list[int]) -> np.ndarray:
    n = len(middle)
    parts = [
        np.broadcast_to(np.array(marks, np.int32), (n, len(marks))) for marks in (before, after)
    ]
    return np.concatenate([parts[0], middle, parts[1]], axis=1)


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> pa.ListArray:
    """Join lists that lie one after the other: `parts` are their values, and the sizes of each list."""
    sizes = np.stack([sizes for _, sizes in parts], axis=1)
    ends = np.cumsum(sizes.ravel()).reshape(sizes.shape)
    values = np.empty(int(sizes.sum()), np.int32)
    for column, (source, own) in enumerate(parts):
        begins = ends[:, column] - own
        offsets = np.cumsum(own) - own
        values[np.repeat(begins - offsets, own) + np.arange(len(source))] = source
    return _lists(sizes.sum(axis=1), values)


def _lists(sizes: np.ndarray, values: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _samples(ids: Any, sources: Any, modality: str, frames: np.ndarray, lists: Any) -> pa.Table:
    columns = {
        "id": ids,
        "source": sources,
        "modality": [modality] * len(frames),
        "frames": frames.astype(np.int32),
        "input_ids": lists,
    }
    return pa.table(columns, schema=SAMPLE)


_SPEECH_WORK = {
    "ingest": make_clips,
    "score": make_scores,
    "encode": make_codes,
    "tokenize": make_speech_samples,
}
