"""One corpus in the forms that corpora are published in: each gives the clips of the plain files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run_dir.storage import Storage
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.calling import koe
from tests.corpus import run_bytes
from tests.laws.published_forms import (
    AUDIO_HZ,
    Part,
    Writer,
    write_lines_zst,
    write_nemo,
    write_plain,
    write_shar,
    write_supervisions,
    write_table,
    write_tars_and_table,
    write_webdataset,
)
from tests.stages.sources.reading import ingested, waves
from tests.stages.speech import synthetic_speech


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
