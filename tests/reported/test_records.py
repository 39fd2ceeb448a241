"""Records that other readers swallowed, hung at or stopped at: each is quarantined by its name alone."""

from __future__ import annotations

import json
import os
import pty
from pathlib import Path

import pytest

from koe.errors import ConfigError
from stages.sources.base import short_key
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.real_data import REPORTS, WORDS
from tests.stages.audio_files import write_lines
from tests.stages.records import clips_and_bad, conversations

WORD = sorted(WORDS.glob("*.mp3"))[0]


@pytest.mark.parametrize("unit_records", [1, 7, 5000])
def test_one_raw_tab_in_an_array_costs_one_record(unit_records):
    """hcgf 15: 399 records behind it were lost, and counted as one."""
    kept, bad = conversations(unit_records, kind="json", paths=[str(REPORTS / "Z/ctrl.json")])
    assert kept == [[(f"問{n}", f"答{n}")] for n in range(1000) if n != 600]
    ((reason, detail),) = bad.values()
    assert reason == "broken_json"
    assert "Invalid control character" in detail


def test_bytes_that_are_no_audio_cost_one_clip(tmp_path):
    (tmp_path / "good.mp3").write_bytes(WORD.read_bytes())
    (tmp_path / "bad.mp3").write_bytes((REPORTS / "bad.mp3").read_bytes())
    lines = [{"audio_filepath": f"{name}.mp3", "text": "文"} for name in ("bad", "good")]
    path = write_lines(tmp_path / "m.jsonl", lines)
    kept, bad = clips_and_bad(kind="manifest", paths=[str(path)])
    assert [clip["id"] for clip in kept] == ["s/good.mp3"]
    assert bad == {"s/bad.mp3": ("truncated_audio", "0 of 19 MPEG frames")}


def test_a_column_whose_name_is_no_text_costs_its_file(tmp_path):
    """The names of columns are what the audio is found by."""
    path = str(REPORTS / "bad-schema.parquet")
    why = (
        "310,140 bytes from byte 0 on: not a complete Parquet file: the name of a column is not "
        "valid UTF-8: invalid start byte"
    )
    expected = ("unreadable_bytes", why)
    assert clips_and_bad(kind="parquet", paths=[path]) == ([], {"s/bad-schema.parquet@0": expected})
    assert conversations(kind="parquet", paths=[path]) == ([], {"bad-schema.parquet@0": expected})


def test_surrogates_as_bytes_cost_their_line(tmp_path):
    """Python's json takes ED A0 80 for a character, which then no table can hold."""
    lines = [
        {"audio_filepath": str(WORD), "text": "文"},
        b'{"audio_filepath": "a.mp3", "text": "\xed\xa0\x80"}',
        b'{"audio_filepath": "\xed\xa0\x80.mp3", "text": "b"}',
    ]
    path = write_lines(tmp_path / "m.jsonl", lines)
    kept, bad = clips_and_bad(kind="manifest", paths=[str(path)], audio_root=str(WORDS))
    assert [clip["text"] for clip in kept] == ["文"]
    assert {reason for reason, _ in bad.values()} == {"broken_json"}
    assert len(bad) == 2
    assert all("not valid UTF-8" in detail for _, detail in bad.values())


def test_a_header_that_ends_in_a_return_alone(tmp_path):
    (tmp_path / "w0.mp3").write_bytes(WORD.read_bytes())
    (tmp_path / "metadata.csv").write_bytes("file_name,text\rw0.mp3,文\nnone.mp3,字\n".encode())
    kept, bad = clips_and_bad(kind="folder", paths=[str(tmp_path)])
    assert [(clip["id"], clip["text"]) for clip in kept] == [(f"s/{tmp_path.name}/w0.mp3", "文")]
    assert [reason for reason, _ in bad.values()] == ["missing_audio"]


@pytest.fixture
def places(tmp_path):
    """Make a folder of places that are no files, in which opening some would wait forever."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to_fifo").symlink_to("fifo")
    (tmp_path / "circle").symlink_to("round")
    (tmp_path / "round").symlink_to("circle")
    (tmp_path / "astray").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    own, other = pty.openpty()
    (tmp_path / "terminal").symlink_to(os.ttyname(other))
    yield tmp_path
    os.close(own)
    os.close(other)


NOWHERE = {
    "fifo": "is a FIFO, not a file",
    "to_fifo": "is a FIFO, not a file",
    "terminal": "is a device, not a file",
    "/dev/tty": "is a device, not a file",
    "/dev/zero": "is a device, not a file",
    "/dev/stdin": "not a file",
    "folder": "is a folder, not a file",
    "folder/": "is a folder, not a file",
    ".": "is a folder, not a file",
    "circle": "Too many levels of symbolic links",
    "astray": "No such file",
    "zero\0byte.mp3": "the path contains a NUL character",
    "x" * 300: "File name too long",
    "/".join(["y" * 200] * 40): "File name too long",
    "*.mp3": "No such file",
}
OF_OTHER_PROTOCOLS = [
    "nosuch://a/b.mp3",
    "zip://a.mp3",
    f"zip://a.mp3::{WORD}",
    "tar://a.mp3::/nowhere.tar",
    "data://x",
    "jupyter://x",
    "reference://x",
    "dir://x",
    "generic://x",
    "memory://x.mp3",
    "file://host/x.mp3",
]


def test_a_path_to_no_file_costs_its_clip(places, monkeypatch):
    if not Path("/proc/self/fd/0").exists():
        monkeypatch.delitem(NOWHERE, "/dev/stdin")
    names = [str(WORD), *NOWHERE, *OF_OTHER_PROTOCOLS]
    lines = [{"audio_filepath": name, "text": "文"} for name in names]
    path = write_lines(places / "m.jsonl", [*lines, {**lines[0], "offset": 0.1}])
    kept, bad = clips_and_bad(kind="manifest", paths=[str(path)], allow_outside=True)
    assert [clip["id"] for clip in kept] == [f"s/{WORD}", f"s/{WORD}@0.1"]
    assert bad.keys() == {f"s/{short_key(name)}" for name in names[1:]}
    assert {bad[f"s/{name}"][0] for name in OF_OTHER_PROTOCOLS} == {"other_protocol"}
    for name, why in NOWHERE.items():
        reason, detail = bad[f"s/{short_key(name)}"]
        assert (reason, why in detail) == ("missing_audio", True), detail


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fifo", "it is a FIFO, not a file"),
        ("to_fifo", "it is a FIFO, not a file"),
        ("terminal", "it is a device, not a file"),
        ("/dev/zero", "it is a device, not a file"),
        ("folder", "it is a folder"),
        ("circle", "nothing matches it"),
        ("astray", "nothing matches it"),
        ("nosuch://a/b.jsonl", "Protocol not known"),
        ("fif*", "it is a FIFO, not a file"),
        ("astra*", "it is a link that leads to no file"),
        ("circl*", "it is a link that leads to no file"),
    ],
)
@pytest.mark.parametrize("kind", ["manifest", "webdataset", "parquet"])
def test_a_source_that_is_no_file_is_refused_before_any_work(places, name, why, kind):
    path = name if name.startswith("/") or "://" in name else str(places / name)
    source = speech_source(SpeechSourceConfig(name="s", kind=kind, paths=[path]), 10)
    with pytest.raises(ConfigError) as caught:
        list(source.units())
    assert why in str(caught.value)


def test_a_file_whose_name_is_no_text_is_refused(tmp_path):
    name = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xe9.jsonl")
    Path(name).write_text(json.dumps({"audio_filepath": str(WORD), "text": "文"}))
    source = speech_source(
        SpeechSourceConfig(name="s", kind="manifest", paths=[f"{tmp_path}/*.jsonl"]), 10
    )
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        list(source.units())


def test_an_id_of_any_length_is_told_by_its_beginning(tmp_path):
    """What names a record goes into every table and page; the audio is found by its whole path."""
    lines = [
        {"audio_filepath": "z" * 3_000_000 + end, "text": "文"} for end in ("1.mp3", "2.mp3")
    ] + [
        {"audio_filepath": str(WORD), "text": "文", "offset": "y" * 200_000},
        {"audio_filepath": f"{'./' * 1500}{WORD.name}", "text": "文"},
        {"audio_filepath": f"{'./' * 2500}{WORD.name}", "text": "文"},
    ]
    (tmp_path / WORD.name).write_bytes(WORD.read_bytes())
    kept, bad = clips_and_bad(
        kind="manifest", paths=[str(write_lines(tmp_path / "m.jsonl", lines))]
    )
    assert [clip["id"] for clip in kept] == [f"s/{'./' * 1500}{WORD.name}"]
    assert len(bad) == 4
    assert all(len(key) < 4200 for key in bad)
    assert all(len(detail) < 4200 for _, detail in bad.values())
