"""A made-up record or two of each corpus of docs/recipes.md, in its form and at its place.

Forms that have a library are written by it: lhotse, webdataset, datasets.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import soundfile
import webdataset
from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet

from tests.stages.sources.nemo_sets import write_tarred
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
# Kept clips or samples of each source, and the quarantined ones by reason.
EXPECTED: dict[str, tuple[int, dict[str, int]]] = {
    "jchat": (2, {"missing_transcript": 1}),
    "reazonspeech": (1, {"missing_transcript": 1}),
    "reazonspeech_parquet": (1, {}),
    "emilia": (1, {}),
    "common_voice": (2, {"missing_audio": 1}),
    "ljspeech": (2, {}),
    "jsut": (2, {}),
    "jvs": (2, {"missing_audio": 1}),
    "vits": (2, {}),
    "bert_vits": (2, {}),
    "own": (1, {"broken_row": 1}),
    "shar": (4, {}),
    "cuts": (4, {}),
    "prepared": (4, {}),
    "nemo": (4, {"not_in_manifest": 1}),
    "audiofolder": (2, {}),
    "parquet": (2, {}),
    "llm_japanese": (2, {"missing_answer": 1}),
}


def audio(kind: str, audio_hz: int, seconds: float, seed: int = 1) -> bytes:
    file = io.BytesIO()
    speech = synthetic_speech(round(seconds * audio_hz), audio_hz, seed)
    soundfile.write(file, speech, audio_hz, format=kind)
    return file.getvalue()


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "a") as tar:
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
    write(folder / "small.tsv", '000/5f2c.flac\t"今日"は晴れです。\n')


def write_parquet(path: Path, column: str, audios: dict[str, bytes], **others: Any) -> None:
    """Let `datasets` write audio as it holds it, bytes beside a name."""
    path.parent.mkdir(parents=True)
    rows = {"audio": [{"bytes": data, "path": name} for name, data in audios.items()]}
    rows[column] = [f"今日は{name}が晴れです。" for name in audios]
    table = datasets.Dataset.from_dict({**rows, **others})
    table = table.cast_column("audio", datasets.Audio(decode=False))  # encodes nothing itself
    table.to_parquet(str(path))


def write_emilia(folder: Path) -> None:
    folder.mkdir(parents=True)
    sample = {"__key__": EMILIA["id"], "mp3": audio("MP3", 24_000, 1.0), "json": EMILIA}
    with webdataset.TarWriter(str(folder / "JA-B000000.tar")) as tar:
        tar.write(sample)


def write_common_voice(folder: Path) -> None:
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale"
    rows = [f'c{n}\tcommon_voice_ja_{n}.mp3\t{n}\t"はい、{n}番です。\t2\tja' for n in range(3)]
    write(folder / "validated.tsv", "\n".join([header, *rows]) + "\n")
    for number in range(2):
        write(folder / f"clips/common_voice_ja_{number}.mp3", audio("MP3", 32_000, 1.0))


def write_read_speech(data: Path) -> None:
    """Write LJSpeech, JSUT and JVS: tables beside .wav files."""
    wav = audio("WAV", 24_000, 1.0)
    lines = ['LJ001-0001|"Yes, 1455|"Yes, fourteen fifty-five', "LJ001-0002|in being.|in being."]
    write(data / "LJSpeech-1.1/metadata.csv", "\n".join(lines) + "\n")
    for line in lines:
        write(data / f"LJSpeech-1.1/wavs/{line.partition('|')[0]}.wav", wav)
    for part in ("basic5000", "loanword128"):
        folder = data / "jsut_ver1.1" / part
        write(folder / "transcript_utf8.txt", f"{part.upper()}_0001:水を買う。\n")
        write(folder / f"wav/{part.upper()}_0001.wav", wav)
    for speaker in ("jvs001", "jvs002"):
        folder = data / "jvs_ver1" / speaker / "parallel100"
        absent = "VOICEACTRESS100_002:無い。\n" if speaker == "jvs002" else ""
        write(folder / "transcripts_utf8.txt", f"VOICEACTRESS100_001:また。\n{absent}")
        write(folder / "wav24kHz16bit/VOICEACTRESS100_001.wav", wav)


def write_lists(data: Path) -> None:
    """Write lists without headers, one of them by a program on Windows."""
    wav = audio("WAV", 24_000, 1.0)
    for name in ("vits/wavs/0.wav", "vits/wavs/1.wav", "sbv2/wavs/0.wav", "sbv2/wavs/1.wav"):
        write(data / name, wav)
    write(data / "own/a/0.flac", audio("FLAC", 24_000, 1.0))
    write(data / "vits/train.txt", "wavs/0.wav|0|一つ\nwavs/1.wav|1|二つ\n")
    write(data / "sbv2/esd.list", "wavs\\0.wav|mei|JP|一つ\r\nwavs\\1.wav|mei|JP|二つ\r\n")
    write(data / "own/list.tsv", 'a/0.flac\t"一つ\ta\na/1.flac\t二つ\n')


def write_lhotse(data: Path) -> None:
    """Let lhotse write two recordings of two supervisions each, in its three forms."""
    recordings, supervisions = [], []
    for number in range(2):
        path = write(data / f"tv/{number}.wav", audio("WAV", 16_000, 3.0, seed=number))
        recordings.append(Recording.from_file(path, recording_id=f"r{number}"))
        supervisions += [
            SupervisionSegment(
                f"r{number}-{n}", f"r{number}", n + 0.2, 0.9, text="文。", speaker="a"
            )
            for n in range(2)
        ]
    sets = RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(supervisions)
    cuts = CutSet.from_manifests(*sets)
    (data / "shar").mkdir()
    cuts.to_shar(data / "shar", fields={"recording": "flac"}, shard_size=1)
    (data / "manifests").mkdir()
    cuts.to_file(data / "manifests/tv_cuts_train.jsonl.gz")
    for name, found in zip(("recordings", "supervisions"), sets, strict=True):
        found.to_file(data / f"manifests/tv_{name}_train.jsonl.gz")


def write_nemo(data: Path) -> None:
    entries = []
    for number in range(2):
        path = write(data / f"nemo-audio/{number}.wav", audio("WAV", 16_000, 3.0, seed=number))
        place = {"audio_filepath": str(path), "duration": 0.9, "text": "文。"}
        entries += [{**place, "offset": n + 0.2} for n in range(2)]
    write_tarred(data / "nemo", entries)
    write_tar(data / "nemo/audio_1.tar", {"unnamed.wav": audio("WAV", 16_000, 1.0)})


def write_audiofolder(folder: Path) -> None:
    for number in range(2):
        write(folder / f"{number}.wav", audio("WAV", 16_000, 1.0))
    write(folder / "metadata.csv", 'file_name,transcription\n0.wav,"はい、一つ。"\n1.wav,二つ。\n')


def write_instructions(folder: Path) -> None:
    samples = [
        {"instruction": "日本の首都は？", "input": "", "output": "東京です。"},
        {"instruction": "訳してください。", "input": "cat", "output": "猫"},
        {"instruction": "続けてください。", "input": "", "output": ""},
    ]
    lines = "\n".join(json.dumps(sample, ensure_ascii=False) for sample in samples)
    write(folder / "data-cc-by-sa.jsonl", lines)


def write_all(root: Path) -> None:
    """Write all of them below `root`/data, where the recipes look."""
    data = root / "data"
    write_jchat(data / "jchat")
    write_reazonspeech(data / "reazonspeech")
    one = {"000/5f2c.flac": audio("FLAC", 16_000, 1.0)}
    write_parquet(data / "reazonspeech-parquet/train.parquet", "transcription", one, name=list(one))
    write_emilia(data / "emilia/JA")
    write_common_voice(data / "cv-corpus/ja")
    write_read_speech(data)
    write_lists(data)
    write_lhotse(data)
    write_nemo(data)
    write_audiofolder(data / "audiofolder")
    two = {f"{number}.mp3": audio("MP3", 32_000, 1.0) for number in range(2)}
    write_parquet(data / "parquet/train.parquet", "sentence", two)
    write_instructions(data / "llm-japanese-dataset")
