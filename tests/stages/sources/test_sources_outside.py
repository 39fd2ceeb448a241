"""Where the paths of records may lead: below the folder that they stand in, unless the settings say more."""

from __future__ import annotations

import json
import os
from pathlib import Path

import lhotse
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from koe.errors import BadRecord, ConfigError, attempt
from stages.sources.checks.first_records import check_first_records
from stages.sources.files.places import resolve
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.stages.audio_files import write_lines
from tests.stages.records import clips_and_bad
from tests.stages.sources.reading import reasons

WAV_SECONDS, AUDIO_HZ = 0.5, 16_000


def config(kind="manifest", **values):
    return SpeechSourceConfig.model_validate({"name": "s", "kind": kind, "paths": ["x"], **values})


def place(listing, name, **values):
    """Return where a name leads, or the reason why it may lead nowhere."""
    found = attempt(resolve, config(**values), listing, name)
    return found.reason if isinstance(found, BadRecord) else found


OUT, OTHER = "outside_path", "other_protocol"


@pytest.mark.parametrize(
    ("listing", "name", "expected"),
    [
        ("/d/m.jsonl", "a.wav", "/d/a.wav"),
        ("/d/m.jsonl", "a..b/c.wav", "/d/a..b/c.wav"),
        ("/d/m.jsonl", "/d/a/b.wav", "/d/a/b.wav"),
        ("/d/m.jsonl", "file:///d/a.wav", "file:///d/a.wav"),
        ("file:///d/m.jsonl", "/d/a.wav", "/d/a.wav"),
        ("/d/m.jsonl", "a::b.wav", "/d/a::b.wav"),
        ("/m.jsonl", "/a.wav", "/a.wav"),
        ("/d/m.jsonl", "../a.wav", OUT),
        ("/d/m.jsonl", "a/../../b.wav", OUT),
        ("/d/m.jsonl", "/d2/a.wav", OUT),
        ("/d/m.jsonl", "/d/../a.wav", OUT),
        ("/d/m.jsonl", "/etc/hostname", OUT),
        ("/d/m.jsonl", "file:///etc/hostname", OUT),
        ("/d/m.jsonl", "file://etc/hostname", OTHER),
        ("/d/m.jsonl", "s3://b/a.wav", OTHER),
        ("/d/m.jsonl", "http://b/a.wav", OTHER),
        ("/d/m.jsonl", "local:///d/a.wav", OTHER),
        ("/d/m.jsonl", "simplecache::file:///d/a.wav", OTHER),
        ("/d/m.jsonl", "zip://a.wav::/d/a.zip", OTHER),
        ("s3://b/d/m.jsonl", "a.wav", "s3://b/d/a.wav"),
        ("s3://b/d/m.jsonl", "s3://b/d/e/a.wav", "s3://b/d/e/a.wav"),
        ("s3://b/d/m.jsonl", "s3://b/a.wav", OUT),
        ("s3://b/d/m.jsonl", "s3://c/d/a.wav", OUT),
        ("s3://b/d/m.jsonl", "../a.wav", OUT),
        ("s3://b/d/m.jsonl", "%2e%2e/a.wav", "s3://b/d/%2e%2e/a.wav"),
        ("s3://b/d/m.jsonl", "s3://b/d/%2e%2E/a.wav", OUT),
        ("s3://b/d/m.jsonl", "/etc/hostname", OTHER),
        ("s3://b/d/m.jsonl", "file:///etc/hostname", OTHER),
        ("s3://b/d/m.jsonl", "simplecache::a.wav", OTHER),
        ("s3://b/d/m.jsonl", "s3://b/d/a.wav::file:///etc/hostname", OTHER),
        ("https://h/d/m.jsonl", "https://h/d/../a.wav", OUT),
        ("https://h/d/m.jsonl", "http://h/d/a.wav", OTHER),
    ],
)
def test_names_of_records(listing, name, expected):
    assert place(listing, name) == expected


def test_what_the_settings_allow():
    assert place("/d/m.jsonl", "/e/a.wav", allow_outside=True) == "/e/a.wav"
    assert place("/d/m.jsonl", "../a.wav", allow_outside=True) == "/d/../a.wav"
    assert place("/d/m.jsonl", "s3://b/a.wav", allow_outside=True) == OTHER
    assert place("/d/m.jsonl", "file://h/a.wav", allow_outside=True) == OTHER
    assert place("s3://b/m.jsonl", "a::b", allow_outside=True) == OTHER
    assert place("/d/m.jsonl", "/e/a.wav", audio_root="/e") == "/e/a.wav"
    assert place("/d/m.jsonl", "/d/a.wav", audio_root="/e") == "/d/a.wav"
    assert place("/d/m.jsonl", "../a.wav", audio_root="/e/f") == OUT
    assert place("/d/m.jsonl", "/any/a.wav", audio_root="/") == "/any/a.wav"
    root = {"audio_root": "s3://b/audio"}
    assert place("/d/m.jsonl", "a.wav", **root) == "s3://b/audio/a.wav"
    assert place("/d/m.jsonl", "s3://b/audio/a.wav", **root) == "s3://b/audio/a.wav"
    assert place("/d/m.jsonl", "s3://c/a.wav", **root) == OUT
    assert place("/d/m.jsonl", "http://c/a.wav", **root) == OTHER


PARTS = st.sampled_from(["..", ".", "", "a", "b", "link", "out", "d"])


@given(st.booleans(), st.lists(PARTS, max_size=8))
@settings(max_examples=300, deadline=None)
def test_no_path_leads_out_but_by_a_link_in_the_folder(tmp_path_factory, is_absolute, parts):
    """With `..` behind a link, only the disk can tell where a path leads."""
    base = tmp_path_factory.getbasetemp() / "outside"
    if not base.exists():
        (base / "d/a/b").mkdir(parents=True)
        (base / "else/out/deep").mkdir(parents=True)
        (base / "d/link").symlink_to(base / "d/a/b")
        (base / "d/out").symlink_to(base / "else/out/deep")
    name = "/".join(parts)
    found = place(f"{base}/d/m.jsonl", f"{base}/{name}" if is_absolute else name)
    if found in (OUT, OTHER):
        return
    if ".." in parts or "out" not in parts:
        real = os.path.realpath(found)
        last = len(parts) - 1 - parts[::-1].index("..") if ".." in parts else 0
        assert real == str(base / "d") or real.startswith(f"{base}/d/") or "out" in parts[last:]


def test_a_link_in_the_folder_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    soundfile.write(tmp_path / "disk/1.wav", np.ones(800) / 2, AUDIO_HZ)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/wavs").symlink_to(tmp_path / "disk")
    names = ["wavs/1.wav", "wavs/../disk/1.wav", "wavs/../set/m.jsonl"]
    path = write_lines(
        tmp_path / "set/m.jsonl", [{"audio_filepath": name, "text": "文"} for name in names]
    )
    kept, bad = clips_and_bad(kind="manifest", paths=[str(path)])
    assert [clip["id"] for clip in kept] == ["s/wavs/1.wav"]
    assert bad["s/wavs/../disk/1.wav"][0] == OUT
    (tmp_path / "by_link").symlink_to(tmp_path / "set")
    kept, _ = clips_and_bad(
        kind="manifest", paths=[f"{write_absolute(tmp_path, tmp_path / 'by_link')}"]
    )
    assert len(kept) == 1


def write_absolute(real: Path, folder: Path) -> Path:
    """Write a manifest that names its audio by the real path of its folder."""
    soundfile.write(real / "set/2.wav", np.ones(800) / 2, AUDIO_HZ)
    line = {"audio_filepath": f"{real}/set/2.wav", "text": "文"}
    return write_lines(folder / "n.jsonl", [line])


# --- every kind of source whose records name files -------------------------------------------------


def manifest(folder: Path, names: list[str]) -> SpeechSourceConfig:
    lines = [{"audio_filepath": name, "text": "文"} for name in names]
    return config(paths=[str(write_lines(folder / "m.jsonl", lines))])


def table(folder: Path, names: list[str]) -> SpeechSourceConfig:
    path = folder / "metadata.csv"
    path.write_text("file_name,text\n" + "".join(f'"{name}",文\n' for name in names))
    return config("folder", paths=[str(path)])


def layout(folder: Path, names: list[str]) -> SpeechSourceConfig:
    (folder / "t.list").write_text("".join(f"{name}|文\n" for name in names))
    return config("folder", paths=[f"{folder}/t.list"], layout="vits")


def parquet_paths(folder: Path, names: list[str]) -> SpeechSourceConfig:
    pq.write_table(pa.table({"audio": names, "text": ["文"] * len(names)}), folder / "t.parquet")
    return config("parquet", paths=[f"{folder}/t.parquet"])


def parquet_structs(folder: Path, names: list[str]) -> SpeechSourceConfig:
    cells = [{"bytes": None, "path": name} for name in names]
    pq.write_table(pa.table({"audio": cells, "text": ["文"] * len(names)}), folder / "t.parquet")
    return config("parquet", paths=[f"{folder}/t.parquet"])


def cuts(folder: Path, names: list[str], kind: str = "file") -> SpeechSourceConfig:
    lines = []
    for number, name in enumerate(names):
        source = lhotse.AudioSource(type=kind, channels=[0], source=name)
        recording = lhotse.Recording(f"r{number}", [source], AUDIO_HZ, 8000, WAV_SECONDS)
        part = lhotse.SupervisionSegment(f"s{number}", recording.id, 0, WAV_SECONDS, text="文")
        cut = lhotse.MonoCut(f"c{number}", 0, WAV_SECONDS, 0, [part], recording=recording)
        lines.append(cut.to_dict())
    return config("shar", paths=[str(write_lines(folder / "list.jsonl", lines))])


KINDS = [manifest, table, layout, parquet_paths, parquet_structs, cuts]


def read(settings: SpeechSourceConfig, **values):
    return speech_source(settings.model_copy(update=values), 100)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_source_stops_before_any_work(tmp_path, kind):
    folder = tmp_path / "set"
    folder.mkdir()
    for path in (folder / "a.wav", tmp_path / "b.wav"):
        soundfile.write(path, np.ones(8000) / 2, AUDIO_HZ)
    settings = kind(folder, ["a.wav", f"{tmp_path}/b.wav", "../b.wav", "s3://b/c.wav", "data://x"])
    source = read(settings)
    assert sorted(reasons(source).values()) == [OTHER, OTHER, OUT, OUT]
    with pytest.raises(ConfigError) as caught:
        check_first_records(source, list(source.units()))
    assert f"{tmp_path}/b.wav does not lie below {folder}" in str(caught.value)
    assert "allow_outside: true" in str(caught.value)
    source = read(settings, allow_outside=True)
    check_first_records(source, list(source.units()))
    assert list(reasons(source).values()) == [OTHER, OTHER]
    rooted = read(settings, audio_root=str(tmp_path))
    assert sorted(reasons(rooted).values()) == ["missing_audio", OTHER, OTHER, OUT]


def test_records_that_all_name_another_protocol_are_refused(tmp_path):
    source = read(manifest(tmp_path, [f"s3://b/{n}.wav" for n in range(9)]))
    with pytest.raises(ConfigError) as caught:
        check_first_records(source, list(source.units()))
    assert "s3://b/0.wav is of another protocol than its source, which is on the disk" in str(
        caught.value
    )
    assert "Set audio_root" in str(caught.value)
    assert "allow_outside" not in str(caught.value)


@pytest.mark.parametrize("kind", ["command", "memory", "video", "", None, "FILE"])
def test_recordings_that_run_a_command_are_refused(tmp_path, kind):
    settings = cuts(tmp_path, ["touch made"], kind)
    assert list(reasons(read(settings, allow_outside=True)).values()) == ["unsupported_recording"]
    assert not Path("made").exists()


def test_a_list_of_shards_may_not_lead_out(tmp_path):
    (tmp_path / "set").mkdir()
    write_lines(tmp_path / "set/cuts.0.jsonl", [{}])
    for cut_list, tar in (("../x.jsonl", "a.tar"), ("cuts.0.jsonl", "/x/a.tar")):
        lists = {"cuts": [cut_list], "recording": [tar]}
        (tmp_path / "set/shar.json").write_text(json.dumps(lists))
        source = read(config("shar", paths=[f"{tmp_path}/set/shar.json"]))
        with pytest.raises(ConfigError, match="may not read what"):
            list(source.units())


@pytest.mark.parametrize("kind", ["webdataset", "nemo_tarred"])
def test_kinds_whose_audio_lies_in_tars_have_no_use_for_the_key(kind):
    with pytest.raises(ValidationError, match="allow_outside has no meaning"):
        config(kind, allow_outside=True)
