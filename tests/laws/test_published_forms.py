"""One corpus in the forms that corpora are published in: each gives the clips of the plain files."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset
import yaml
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet

from pipeline.run_dir.storage import Storage
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.calling import koe
from tests.corpus import run_bytes
from tests.stages.sources.nemo_sets import write_manifest, write_tarred
from tests.stages.sources.reading import ingested, waves
from tests.stages.speech import synthetic_speech

AUDIO_HZ = 16_000


@dataclass(frozen=True)
class Part:
    """A clip of a recording: its file, whose number is `recording`, and where it lies there."""

    recording: int
    path: Path
    start: float
    seconds: float
    text: str
    speaker: str

    @property
    def id(self) -> str:
        return f"r{self.recording}-{round(self.start * 1000)}"

    def entry(self) -> dict[str, Any]:
        place = {"audio_filepath": str(self.path), "offset": self.start, "duration": self.seconds}
        return {**place, "text": self.text, "speaker": self.speaker}

    def supervision(self) -> SupervisionSegment:
        place = (self.id, f"r{self.recording}", self.start, self.seconds)
        return SupervisionSegment(*place, channel=0, text=self.text, speaker=self.speaker)


Writer = Callable[[Path, Sequence[Part]], None]


def record(folder: Path, lengths: Sequence[float], cuts: Sequence[Sequence[float]]) -> list[Part]:
    """Write recordings of some seconds, cut where told; each piece of each is a part."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, (seconds, places) in enumerate(zip(lengths, cuts, strict=True)):
        path = folder / f"tv.{number}.wav"
        audio = synthetic_speech(round(seconds * AUDIO_HZ), AUDIO_HZ, seed=number)
        soundfile.write(path, audio, AUDIO_HZ, subtype="PCM_16")
        borders = [0.0, *places, seconds]
        for place, (start, stop) in enumerate(pairwise(borders)):
            text, speaker = f"録音{number}の{place}番目の文です。", f"話者{number % 2}"
            parts.append(Part(number, path, start, round(stop - start, 3), text, speaker))
    return parts


def by_recording(parts: Sequence[Part]) -> Iterator[tuple[Recording, list[Part]]]:
    for number in dict.fromkeys(part.recording for part in parts):
        own = [part for part in parts if part.recording == number]
        yield Recording.from_file(own[0].path, recording_id=f"r{number}"), own


def cut_of(recording: Recording, parts: Sequence[Part]) -> MonoCut:
    supervisions = [part.supervision() for part in parts]
    return MonoCut(
        f"cut-{recording.id}", 0, recording.duration, 0, supervisions, recording=recording
    )


def write_plain(folder: Path, parts: Sequence[Part]) -> None:
    write_manifest(folder / "manifest.jsonl", [part.entry() for part in parts])


def write_lines_zst(folder: Path, parts: Sequence[Part]) -> None:
    write_plain(folder, parts)
    text = (folder / "manifest.jsonl").read_bytes()
    middle = len(text) // 2  # two frames, of which the second begins inside a line
    data = zstandard.compress(text[:middle]) + zstandard.compress(text[middle:])
    (folder / "manifest.jsonl.zst").write_bytes(data)


def write_nemo(folder: Path, parts: Sequence[Part]) -> None:
    write_tarred(folder / "nemo", [part.entry() for part in parts], num_shards=1)


def write_shar(folder: Path, parts: Sequence[Part]) -> None:
    cuts = CutSet.from_cuts(cut_of(*pair) for pair in by_recording(parts))
    (folder / "shar").mkdir()
    cuts.to_shar(folder / "shar", fields={"recording": "flac"}, shard_size=2)


def write_supervisions(folder: Path, parts: Sequence[Part]) -> None:
    pairs = list(by_recording(parts))
    RecordingSet.from_recordings(r for r, _ in pairs).to_file(folder / "tv_recordings.jsonl.gz")
    found = [part.supervision() for _, own in pairs for part in own]
    SupervisionSet.from_segments(found).to_file(folder / "tv_supervisions.jsonl.gz")


def flac(part: Part) -> bytes:
    """Return a clip as a file of its own."""
    start, frames = round(part.start * AUDIO_HZ), round(part.seconds * AUDIO_HZ)
    audio, _ = soundfile.read(part.path, start=start, frames=frames, dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, audio, AUDIO_HZ, format="FLAC")
    return file.getvalue()


def write_webdataset(folder: Path, parts: Sequence[Part]) -> None:
    """Write a .tar.gz of each clip alone, as such sets have them."""
    with webdataset.TarWriter(str(folder / "clips.tar.gz"), compress=True) as tar:
        for part in parts:
            fields = {"text": part.text, "speaker": part.speaker}
            tar.write({"__key__": part.id, "flac": flac(part), "json": fields})


def write_tars_and_table(folder: Path, parts: Sequence[Part]) -> None:
    """Write audio alone into hexadecimal tars, as ReazonSpeech has it, and a table in no order."""
    names = {part.id: f"{number % 2:03x}/{number:013x}.flac" for number, part in enumerate(parts)}
    for number in {name[:3] for name in names.values()}:
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for part in parts:
                if names[part.id].startswith(number):
                    info = tarfile.TarInfo(f"./{names[part.id]}")
                    info.size = len(data := flac(part))
                    tar.addfile(info, io.BytesIO(data))
    rows = [f"{names[part.id]}\t{part.speaker}\t{part.text}\n" for part in reversed(parts)]
    (folder / "all.tsv").write_text("".join(rows), encoding="utf-8")


def write_table(name: str, mark: str, *header: str) -> Writer:
    """Write clips as files, and a table with their name, speaker and text."""

    def write(folder: Path, parts: Sequence[Part]) -> None:
        (folder / "clips").mkdir()
        root = "" if name == "validated.tsv" else "clips/"
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            quoting = csv.QUOTE_MINIMAL if mark == "," else csv.QUOTE_NONE
            table = csv.writer(file, delimiter=mark, quoting=quoting)
            table.writerows([header] if header else [])
            for part in parts:
                (folder / f"clips/{part.id}.flac").write_bytes(flac(part))
                table.writerow([f"{root}{part.id}.flac", part.speaker, part.text])

    return write


@dataclass(frozen=True)
class Form:
    """How the parts are written, and the keys that read them; paths are relative."""

    write: Writer
    kind: str
    path: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    speaker: str = "speaker"


FORMS = {
    "plain": Form(write_plain, "manifest", "manifest.jsonl"),
    "lines_zst": Form(write_lines_zst, "manifest", "manifest.jsonl.zst"),
    "nemo": Form(write_nemo, "nemo_tarred", "nemo/sharded_manifests/manifest_*.json"),
    "nemo_all": Form(write_nemo, "nemo_tarred", "nemo/tarred_audio_manifest.json"),
    "shar": Form(write_shar, "shar", "shar/cuts.*.jsonl.gz"),
    "supervisions": Form(write_supervisions, "shar", "tv_supervisions.jsonl.gz"),
    "tar_gz": Form(write_webdataset, "webdataset", "clips.tar.gz"),
    "tars_and_table": Form(
        write_tars_and_table,
        "webdataset",
        "*.tar",
        {"transcripts": "all.tsv", "columns": ["file_name", "speaker", "text"], "delimiter": "\t"},
    ),
    "audiofolder": Form(
        write_table("metadata.csv", ",", "file_name", "speaker", "text"), "folder", "metadata.csv"
    ),
    "vits": Form(write_table("train.txt", "|"), "folder", "train.txt", {"layout": "vits_speaker"}),
    "common_voice": Form(
        write_table("validated.tsv", "\t", "path", "client_id", "sentence"),
        "folder",
        "validated.tsv",
        {"layout": "common_voice"},
        "client_id",
    ),
}


def settings_of(name: str, folder: str) -> dict[str, Any]:
    form = FORMS[name]
    keys = dict(form.keys)
    if table := keys.get("transcripts"):
        keys["transcripts"] = f"{folder}/{table}"
    if form.kind in ("manifest", "shar", "folder"):  # some name the audio by absolute paths
        keys["allow_outside"] = True
    paths = [f"{folder}/{form.path}"]
    return {
        "name": name, "kind": form.kind, "paths": paths, "fields": {"speaker": form.speaker}, **keys
    }  # fmt: skip


def clips(name: str, folder: Path, unit_records: int) -> dict[str, tuple[str, np.ndarray]]:
    """Read a form: speaker and samples of each clip by its text."""
    config = SpeechSourceConfig(**settings_of(name, str(folder)))
    source = speech_source(config, unit_records)
    kept, left = ingested(source)
    assert not left
    audio = waves(source)
    found = {row["text"]: (row["speaker"], audio[key]) for key, row in kept.items()}
    assert len(found) == len(kept)
    return found


lengths = st.integers(1, 4).map(lambda tenths: 0.5 + tenths / 4)


@pytest.mark.law
@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(lengths, st.integers(0, 3)), min_size=1, max_size=4), st.integers(1, 9))
def test_every_form_gives_the_clips_of_the_plain_files(tmp_path_factory, recordings, unit_records):
    seconds = [length for length, _ in recordings]
    cuts = [
        [round(length * (at + 1) / (number + 1), 3) for at in range(number)]
        for length, number in recordings
    ]
    root = tmp_path_factory.mktemp("forms")
    parts = record(root / "audio", seconds, cuts)
    expected: dict[str, tuple[str, np.ndarray]] = {}
    for name, form in FORMS.items():
        (root / name).mkdir()
        form.write(root / name, parts)
        found = clips(name, root / name, unit_records)
        expected = expected or found
        assert found.keys() == expected.keys() == {part.text for part in parts}, name
        for text, (speaker, audio) in expected.items():
            assert found[text][0] == speaker
            np.testing.assert_array_equal(found[text][1], audio, err_msg=name)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Write a corpus whose sources are the forms; return the path of its `pipeline.yaml`."""
    root = tmp_path_factory.mktemp("published")
    parts = record(root / "audio", [1.2, 0.6], [[0.6], []])
    for name, form in FORMS.items():
        (root / name).mkdir()
        form.write(root / name, parts)
    config = {
        "run_dir": "run",
        "engine": "inline",
        "sources": {"speech": [settings_of(name, name) for name in FORMS]},
        "plan": {"clips_per_unit": 2},
        "snac": {"weights": "untrained", "sha256": None},
        "encode": {"threshold_ovrl": 1.0},
        "interleave": {"ratio": "natural", "max_row_tokens": 1024},
    }
    path = root / "pipeline.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return path


def run(config: Path, *arguments: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        code, _, errors = koe("run", "-c", str(config), "--to", "interleave", *arguments)
    assert code == 0, errors


@pytest.mark.slow
@pytest.mark.law
def test_a_run_over_every_form_is_verified_and_resumes(corpus):
    run(corpus)
    folder = corpus.parent / "run"
    code, output, errors = koe("verify", "-c", str(corpus))
    assert code == 0, output + errors
    codes: dict[str, dict[str, Any]] = {name: {} for name in FORMS}
    for path in sorted((folder / "encode").glob("*.json")):
        table = Storage(str(folder)).read_table(f"encode/{path.stem}.arrow")
        for row in table.to_pylist():
            codes[row["source"]][row["text"]] = (row["codes"], row["ovrl"], row["speaker"])
    assert len(codes["plain"]) == 3
    assert all(found == codes["plain"] for found in codes.values())
    before = run_bytes(folder)
    units = sorted((folder / "ingest").glob("*.json"))
    assert len(units) > len(FORMS)  # some begin in the middle of their file
    for path in units[::2]:  # as if a worker had been killed, and its disk lost
        for stage in ("ingest", "score", "encode", "tokenize"):
            for file in (folder / stage).glob(f"{path.stem}.*"):
                file.unlink()
    run(corpus)
    assert run_bytes(folder) == before
    receipts = {path.name: json.loads(path.read_text()) for path in units}
    assert sum(receipt["kept"] for receipt in receipts.values()) == 3 * len(FORMS)
