"""A made-up record or two of each corpus of docs/recipes.md, in its form and at its place."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment

from tests.stages.speech import synthetic_speech

EMILIA = {
    "id": "JA_B00000_S00000_W000000",
    "wav": "JA_B00000/JA_B00000_S00000/mp3/JA_B00000_S00000_W000000.mp3",
    "text": "さあ、それじゃあですね。",
    "duration": 4.178,
    "speaker": "JA_B00000_S00000",
    "language": "ja",
    "dnsmos": 3.2935,
}


def audio(kind: str, audio_hz: int, seconds: float) -> bytes:
    file = io.BytesIO()
    speech = synthetic_speech(round(seconds * audio_hz), audio_hz, seed=1)
    soundfile.write(file, speech, audio_hz, format=kind)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_jchat(folder: Path) -> None:
    """Let lhotse write a shard of one dialogue: two segments with text, and one without."""
    segments = [(0.0, 1.03, "SPEAKER_01"), (1.74, 1.2, "SPEAKER_00"), (2.95, 0.04, "SPEAKER_01")]
    pieces = [(0.22, 0.4, "違う"), (0.7, 0.4, "んですよ。"), (1.8, 0.5, "なんだ。")]
    cut = Recording.from_bytes(audio("FLAC", 22_050, 3.0), recording_id="d-1").to_cut()
    cut.supervisions = [
        SupervisionSegment(f"s{n}", "d-1", start, length, speaker=who)
        for n, (start, length, who) in enumerate(segments)
    ] + [
        SupervisionSegment(f"t{n}", "d-1", start, length, text=text)
        for n, (start, length, text) in enumerate(pieces)
    ]
    folder.mkdir(parents=True)
    CutSet.from_cuts([cut]).to_shar(folder, fields={"recording": "flac"})


def write_reazonspeech(folder: Path) -> None:
    """Write a tar with one transcribed clip and one without, and the TSV."""
    clip = audio("FLAC", 16_000, 1.0)
    write_tar(folder / "000.tar", {"./000/5f2c.flac": clip, "./000/a001.flac": clip})
    (folder / "small.tsv").write_text('000/5f2c.flac\t"今日"は晴れです。\n', encoding="utf-8")


def write_reazonspeech_parquet(folder: Path) -> None:
    folder.mkdir(parents=True)
    name = "000/5f2c.flac"
    row = {
        "name": name,
        "audio": {"bytes": audio("FLAC", 16_000, 1.0), "path": name},
        "transcription": "今日は晴れです。",
    }
    pq.write_table(pa.Table.from_pylist([row]), folder / "train.parquet")


def write_emilia(folder: Path) -> None:
    key = EMILIA["id"]
    text = json.dumps(EMILIA, ensure_ascii=False).encode()
    write_tar(
        folder / "JA-B000000.tar", {f"{key}.json": text, f"{key}.mp3": audio("MP3", 24_000, 1.0)}
    )


def write_instructions(folder: Path) -> None:
    folder.mkdir(parents=True)
    samples = [
        {"instruction": "日本の首都は？", "input": "", "output": "東京です。"},
        {"instruction": "訳してください。", "input": "cat", "output": "猫"},
        {"instruction": "続けてください。", "input": "", "output": ""},
    ]
    lines = "\n".join(json.dumps(sample, ensure_ascii=False) for sample in samples)
    (folder / "data-cc-by-sa.jsonl").write_text(lines, encoding="utf-8")


def write_all(root: Path) -> None:
    """Write all of them below `root`/data, where the recipes look."""
    data = root / "data"
    write_jchat(data / "jchat")
    write_reazonspeech(data / "reazonspeech")
    write_reazonspeech_parquet(data / "reazonspeech-parquet")
    write_emilia(data / "emilia/JA")
    write_instructions(data / "llm-japanese-dataset")
