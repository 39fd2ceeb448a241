"""Records that are broken on purpose, one list of them with the reason each must be given."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from pipeline.demo.clips import Clip, encode

TOO_LONG_SECONDS = 31.0  # the demo's ingest.max_seconds is 30
_WAV_FLOAT = 3  # WAVE_FORMAT_IEEE_FLOAT


@dataclass(frozen=True)
class Broken:
    """One broken record: its name, where it lies, and the quarantine reason koe must find."""

    name: str
    source: str
    reason: str
    what: str


BROKEN = (
    Broken("cut-flac", "manifest", "truncated_audio", "a FLAC file that ends after 40 %"),
    Broken("cut-wav", "manifest", "truncated_audio", "a WAV file that ends after 40 %"),
    Broken("empty-file", "manifest", "empty_audio", "a file of no bytes"),
    Broken("zeros", "manifest", "all_zero_audio", "two seconds of zero samples"),
    Broken("nan", "manifest", "nonfinite_audio", "a float WAV with a NaN"),
    Broken("no-audio", "manifest", "unreadable_audio", "text in a file called .wav"),
    Broken("too-long", "manifest", "too_long", "31 s of speech where 30 s are the limit"),
    Broken("missing-file", "manifest", "missing_audio", "an entry whose file does not exist"),
    Broken("no-transcript", "manifest", "missing_transcript", "an entry with an empty text"),
    Broken("broken-line", "manifest", "broken_json", "a line cut in the middle"),
    Broken("repeated-near", "manifest", "duplicate_id", "an id used again on the next line"),
    Broken("repeated-far", "manifest", "duplicate_id", "an id used again on the last line"),
    Broken("escaping-member", "tar", "unsafe_tar_member", "a member named ../escaping-member.flac"),
    Broken("no-member", "tar", "missing_audio", "a .json without its audio"),
    Broken("broken-sidecar", "tar", "broken_json", "audio beside a .json cut in the middle"),
    Broken("cut-tar", "tar", "truncated_source", "an archive that ends inside its last member"),
    Broken("null-cell", "parquet", "missing_audio", "a row whose audio is null"),
    Broken("cut-opus", "parquet", "truncated_audio", "Ogg/Opus bytes that end after 40 %"),
    Broken("null-text", "parquet", "missing_transcript", "a row whose text is null"),
    Broken("no-samples", "folder", "empty_audio", "a WAV header without samples"),
    Broken("blank-text", "folder", "missing_transcript", "a row whose text is blank"),
    Broken("extra-cell", "folder", "broken_csv", "a row with a cell too many"),
    Broken("broken-sample", "instructions", "broken_json", "a line cut in the middle"),
    Broken("no-answer", "instructions", "missing_answer", "a sample with an empty output"),
    Broken("blank-answer", "instructions", "missing_answer", "a sample with a blank output"),
)


def broken_manifest(clip: Clip) -> tuple[dict[str, bytes], list[str], str]:
    """Spoil copies of `clip`: files by name, lines of the manifest, and the line to come last."""
    audio, audio_hz = decode(clip)
    files = {
        "cut-flac.flac": cut(encode(audio, audio_hz, "flac")),
        "cut-wav.wav": cut(encode(audio, audio_hz, "wav")),
        "empty-file.flac": b"",
        "zeros.wav": encode(np.zeros(2 * audio_hz, np.float32), audio_hz, "wav"),
        "nan.wav": float_wav(np.where(np.arange(len(audio)) == 1000, np.nan, audio), audio_hz),
        "no-audio.wav": "これは音声ではありません。\n".encode(),
        "too-long.flac": encode(
            np.resize(audio, int(TOO_LONG_SECONDS * audio_hz)), audio_hz, "flac"
        ),
    }
    entry = clip.manifest_entry()
    original = {"audio_filepath": f"audio/{clip.file_name}"}
    entries = [
        *(
            entry | {"id": name.partition(".")[0], "audio_filepath": f"audio/{name}"}
            for name in files
        ),
        entry | {"id": "missing-file", "audio_filepath": "audio/missing-file.wav"},
        entry | original | {"id": "no-transcript", "text": ""},
        entry | original | {"id": "broken-line"},
        entry | original | {"id": "repeated-near"},
        entry | original | {"id": "repeated-near"},
    ]
    lines = [to_json(fields) for fields in entries]
    broken_line = next(place for place, line in enumerate(lines) if '"broken-line"' in line)
    lines[broken_line] = lines[broken_line][:-40]
    # "repeated-near" reads the original's audio, so it is a good record once
    return files, lines, to_json(entry | original)


def broken_members(clip: Clip) -> list[tuple[str, bytes]]:
    """Spoil copies of `clip`: members of a tar, by name. The caller cuts the last one."""
    flac = encode(*decode(clip), "flac")
    sidecar = to_json(clip.manifest_entry()).encode()
    return [
        ("../escaping-member.flac", flac),
        ("no-member.json", sidecar),
        ("broken-sidecar.flac", flac),
        ("broken-sidecar.json", sidecar[:-20]),
        ("cut-tar.flac", flac),
    ]


def broken_rows(clip: Clip) -> list[dict[str, Any]]:
    """Spoil copies of `clip`: rows in the layout of the demo's Parquet file."""
    opus = encode(*_at_opus_rate(clip), "opus")
    row = {"text": clip.plan.text, "speaker": clip.plan.speaker}
    return [
        row | {"id": "null-cell", "audio": None},
        row | {"id": "cut-opus", "audio": {"bytes": cut(opus), "path": "cut-opus.opus"}},
        {
            "id": "null-text",
            "audio": {"bytes": opus, "path": "null-text.opus"},
            "text": None,
            "speaker": clip.plan.speaker,
        },
    ]


def broken_folder(clip: Clip) -> tuple[dict[str, bytes], list[list[str]]]:
    """Spoil copies of `clip`: files by name and rows of the metadata."""
    files = {
        "no-samples.wav": encode(np.zeros(0, np.float32), clip.plan.audio_hz, "wav"),
        "blank-text.wav": clip.audio,
        "extra-cell.wav": clip.audio,
    }
    text, speaker = clip.plan.text, clip.plan.speaker
    rows = [
        ["no-samples.wav", text, speaker],
        ["blank-text.wav", " ", speaker],
        ["extra-cell.wav", text, speaker, "余分"],
    ]
    return files, rows


def broken_samples() -> list[str]:
    """Return lines of the instruction file that hold no usable sample."""
    question = {
        "instruction": "次の言葉の読み方を教えてください。",
        "input": "紅葉",
        "category": "漢字",
    }
    return [
        to_json({"index": "broken-sample", **question, "output": "もみじ"})[:-12],
        to_json({"index": "no-answer", **question, "output": ""}),
        to_json({"index": "blank-answer", **question, "output": "  "}),
    ]


def to_json(fields: dict[str, Any]) -> str:
    """Write one line of JSON with Japanese left readable."""
    return json.dumps(fields, ensure_ascii=False)


def cut(data: bytes) -> bytes:
    """Keep the first 40 % of a file."""
    return data[: len(data) * 2 // 5]


def decode(clip: Clip) -> tuple[np.ndarray, int]:
    """Decode a clip to its first channel, float32 [samples], and its rate."""
    audio, audio_hz = soundfile.read(io.BytesIO(clip.audio), dtype="float32", always_2d=True)
    return np.ascontiguousarray(audio[:, 0]), audio_hz


def _at_opus_rate(clip: Clip) -> tuple[np.ndarray, int]:
    """Drop or repeat samples to reach 24 kHz, which Opus knows; the result is never heard."""
    audio, audio_hz = decode(clip)
    places = np.arange(0, len(audio), audio_hz / 24_000).astype(int)
    return audio[places], 24_000


def float_wav(audio: np.ndarray, audio_hz: int) -> bytes:
    """Write mono audio as 32-bit float WAV.

    libsndfile would add a PEAK chunk with the time of day, and so other bytes every time.
    """
    samples = audio.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", _WAV_FLOAT, 1, audio_hz, 4 * audio_hz, 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
