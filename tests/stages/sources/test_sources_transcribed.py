"""Tars of audio alone, with their transcripts in a table."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pytest
from pydantic import ValidationError

from koe.errors import ConfigError, StorageError
from stages.sources.files.opening import is_remote
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from stages.sources.tars import transcript_index
from tests.stages.records import read_all, reason, same_for_all_sizes


def write_tar(path: Path, names: Iterable[str]) -> None:
    """Write a tar whose audio is its own name; nothing here decodes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            tar.addfile(info, io.BytesIO(name.encode()))


def settings(folder: Path, **changed: object) -> dict[str, object]:
    config = {"kind": "webdataset", "paths": [f"{folder}/*.tar"], "layout": "reazonspeech"}
    return {**config, "transcripts": f"{folder}/small.tsv", **changed}


def read(folder: Path, **changed: object):
    return same_for_all_sizes(**settings(folder, **changed))


def source(folder: Path, index_folder: str = "", **changed: object):
    config = SpeechSourceConfig.model_validate({"name": "s", **settings(folder, **changed)})
    return speech_source(config, 2, index_folder)


def remarks(folder: Path, index_folder: str = "") -> dict[str, int]:
    made = source(folder, index_folder)
    return made.remarks(list(made.units()))


def reazonspeech(folder: Path) -> Path:
    """Write two tars and a TSV in the form of the corpus: one clip and one row have no partner."""
    write_tar(folder / "000.tar", [f"./000/{n:04x}.flac" for n in range(5)])
    write_tar(folder / "001.tar", [f"./001/{n:04x}.flac" for n in range(3)])
    rows = [f'{tar}/{n:04x}.flac\t"{tar}、{n}\n' for tar in ("001", "000") for n in range(5)]
    del rows[6]
    (folder / "small.tsv").write_text("".join(rows), encoding="utf-8")
    return folder


def test_transcripts_are_found_by_the_path_in_the_tar(tmp_path):
    records = read(reazonspeech(tmp_path))
    assert [(record.fields.get("text"), reason(record)) for record in records] == [
        ('"000、0', ""),
        (None, "missing_transcript"),
        ('"000、2', ""),
        ('"000、3', ""),
        ('"000、4', ""),
        ('"001、0', ""),
        ('"001、1', ""),
        ('"001、2', ""),
    ]
    assert f"{tmp_path}/small.tsv has no row for 000/0001.flac" in records[1].bad.detail
    for record in records:
        if record.audio:
            data = (tmp_path / record.audio.path).read_bytes()[record.audio.offset :]
            assert data.startswith(f"./{record.fields['file_name']}".encode())
    assert len({record.key for record in records}) == len(records)


def test_rows_without_audio_are_counted_and_shown(tmp_path):
    rows = f"rows of {tmp_path}/small.tsv"
    what = "name audio that is in none of the tars, such as 001/0003.flac, 001/0004.flac"
    assert remarks(reazonspeech(tmp_path)) == {f"{rows} {what}": 2}
    write_tar(tmp_path / "002.tar", ["001/0003.flac", "001/0004.flac", "x/001/0004.flac"])
    assert remarks(tmp_path) == {}
    write_tar(tmp_path / "003.tar", ["./000/0000.flac"])
    data = (tmp_path / "small.tsv").read_bytes()
    (tmp_path / "small.tsv").write_bytes(data + b"no tab\nx\t\xff\n")
    several, broken = remarks(tmp_path).items()
    what = "name audio that is several members of tars, such as 000/0000.flac"
    assert several == (f"{rows} {what}", 1)
    assert f"{rows} cannot be read, such as byte {len(data)} (1 cells for 2 columns" in broken[0]
    assert broken[1] == 2


@pytest.mark.parametrize("index_folder", ["{}/index", "memory://index{}"])
def test_workers_read_no_more_of_the_table_than_their_rows(tmp_path, index_folder, monkeypatch):
    index_folder = index_folder.format(tmp_path)
    planned = source(reazonspeech(tmp_path), index_folder)
    units = list(planned.units())
    said = planned.remarks(units)
    expected = [repr(record) for unit in units for record in planned.read(unit)]
    monkeypatch.setattr(transcript_index, "_build", None)
    transcript_index._transcript_index.cache_clear()
    fs = fsspec.filesystem("memory") if is_remote(index_folder) else fsspec.filesystem("file")
    (index,) = fs.glob(f"{index_folder.removeprefix('memory:/')}/*.rows")
    fs.rm(index)
    worker = source(tmp_path, index_folder)
    assert [repr(record) for unit in units for record in worker.read(unit)] == expected
    assert worker.remarks(units) == said
    by_file = {(unit.path, unit.stamp): [unit] for unit in units}
    assert len(list(worker.units(lambda path, stamp: by_file[path, stamp]))) == len(by_file)
    monkeypatch.undo()
    fs.rm(index.rpartition("/")[0], recursive=True)
    worker = source(tmp_path, index_folder)  # makes anew what got lost
    assert [repr(record) for unit in units for record in worker.read(unit)] == expected


def test_a_table_that_changes_makes_its_units_new_ones(tmp_path):
    before = source(reazonspeech(tmp_path), f"{tmp_path}/index")
    (unit, *_) = before.units()
    with (tmp_path / "small.tsv").open("a") as table:
        table.write("000/0001.flac\tnew\n")
    with pytest.raises(StorageError, match=r"small\.tsv changed since it was planned"):
        list(before.read(unit))
    after = source(tmp_path, f"{tmp_path}/index")
    (unit, *_) = after.units()
    assert [record.fields["text"] for record in after.read(unit)][1:] == ["new"]


@pytest.mark.parametrize(
    ("rows", "text", "why"),
    [
        (["a.flac\tx", "a.flac\tx"], "x", ""),
        (["./a.flac\tx", "b.flac\ty"], "x", ""),
        (["a.flac\tx", "b.flac\tx", "a.flac\ty"], None, "ambiguous_transcript"),
        (["a.flac\tx", "a.flac\ty", "a.flac\ty"], None, "ambiguous_transcript"),
        (["a.flac\t", "b.flac\tx"], "", ""),  # ingest refuses it
        (["a.FLAC\tx"], None, "missing_transcript"),
        (["a\tx"], None, "missing_transcript"),
        (["a.flac\tx\ty", "b.flac\tx"], None, "missing_transcript"),
        (["a.flac", "a.flac\tx"], "x", ""),
    ],
)
def test_rows_for_one_member(tmp_path, rows, text, why):
    write_tar(tmp_path / "0.tar", ["./a.flac"])
    (tmp_path / "small.tsv").write_text("\n".join(rows))
    (record,) = read(tmp_path)
    assert (record.fields.get("text"), reason(record)) == (text, why)


def test_names_of_the_same_hash_are_told_apart_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(transcript_index, "hash_of", len)
    transcript_index._transcript_index.cache_clear()
    write_tar(tmp_path / "0.tar", ["a.flac", "bb.flac", "ccc.flac"])
    (tmp_path / "small.tsv").write_text("a.flac\tx\nz.flac\tyy\nyy.flac\tz\nccc.flac\tc\n")
    a, b, c = read(tmp_path)
    transcript_index._transcript_index.cache_clear()
    assert [reason(a), reason(b)] == ["ambiguous_transcript"] * 2
    assert "bb.flac has the hash of yy.flac" in b.bad.detail
    assert c.fields["text"] == "c"


def test_a_table_with_a_header_names_more_fields(tmp_path):
    write_tar(tmp_path / "0.tar", ["cv/clips/1.mp3", "cv/clips/2.mp3", "cv/clips/3.mp3"])
    rows = ["client_id\tpath\tsentence", "c\t1.mp3\tx", "d\t2.mp3\ty"]
    (tmp_path / "small.tsv").write_text("\n".join(rows))
    records = read(
        tmp_path, layout="common_voice", audio_path="cv/clips/{path}", fields={"id": "path"}
    )
    assert [r.fields.get("sentence") for r in records] == ["x", "y", None]
    assert [r.key for r in records] == ["cv/clips/1.mp3", "cv/clips/2.mp3", "0/cv/clips/3"]
    assert [r.fields["client_id"] for r in records[:2]] == ["c", "d"]


def test_fields_beside_the_audio_are_read_too(tmp_path):
    write_tar(tmp_path / "0.tar", ["a.flac"])
    with tarfile.open(tmp_path / "0.tar", "a") as tar:
        info = tarfile.TarInfo("a.json")
        info.size = len(data := b'{"speaker": "p", "text": "of the tar"}')
        tar.addfile(info, io.BytesIO(data))
    (tmp_path / "small.tsv").write_text("a.flac\tof the table\n")
    (record,) = read(tmp_path, fields={"speaker": "speaker"})
    assert (record.fields["speaker"], record.fields["text"]) == ("p", "of the table")


def test_tars_and_tables_may_be_compressed(tmp_path):
    plain = read(reazonspeech(tmp_path))
    for path in (*tmp_path.glob("*.tar"), tmp_path / "small.tsv"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    records = read(tmp_path, paths=[f"{tmp_path}/*.tar.gz"], transcripts=f"{tmp_path}/small.tsv.gz")
    assert [(r.key, r.fields) for r in records] == [(r.key, r.fields) for r in plain]


def test_what_is_in_the_tar_beside_audio_costs_nothing(tmp_path):
    write_tar(tmp_path / "0.tar", ["a.flac", "b.md", "c.flac", "._c.flac", "../d.flac", "e.flac"])
    (tmp_path / "small.tsv").write_text("".join(f"{n}.flac\t{n}\n" for n in "ace"))
    data = bytearray((tmp_path / "0.tar").read_bytes())
    data[2 * 1024 + 50 : 2 * 1024 + 60] = b"?" * 10  # the header of c.flac
    (tmp_path / "0.tar").write_bytes(data)
    records = read(tmp_path)
    assert [record.fields.get("text") or reason(record) for record in records] == [
        "a",
        "missing_audio",
        "unreadable_bytes",
        "unsafe_tar_member",
        "e",
    ]


def test_tars_and_their_table_may_lie_on_an_object_store(tmp_path):
    plain = read(reazonspeech(tmp_path))
    fs, root = fsspec.filesystem("memory"), f"/transcribed{tmp_path.name}"
    for path in tmp_path.iterdir():
        fs.pipe_file(f"{root}/{path.name}", path.read_bytes())
    records = read(Path(), paths=[f"memory:/{root}/*.tar"], transcripts=f"memory:/{root}/small.tsv")
    assert [(r.key, r.fields) for r in records] == [(r.key, r.fields) for r in plain]


@pytest.mark.law
def test_a_table_of_any_order_gives_what_a_dictionary_gives(tmp_path):
    chosen = random.Random(1)
    names = [f"{n % 7}/{chosen.getrandbits(50):x}.flac" for n in range(3000)]
    texts = {name: "あ" * chosen.randrange(1, 200) for name in names}
    rows: list[str] = [f"{name}\t{texts[name]}\n" for name in names if chosen.random() < 0.9]
    chosen.shuffle(rows)
    (tmp_path / "small.tsv").write_text("".join(rows), encoding="utf-8")
    expected = dict(row.rstrip("\n").split("\t") for row in rows)
    for tar in range(7):
        write_tar(tmp_path / f"{tar}.tar", [f"./{name}" for name in names[tar::7]])
    config = SpeechSourceConfig.model_validate({"name": "s", **settings(tmp_path)})
    records = read_all(speech_source(config, 200, f"{tmp_path}/index"))
    assert len(records) == len(names)
    found = {r.fields["file_name"]: r.fields["text"] for r in records if not r.bad}
    assert found == expected
    missing = [record for record in records if record.bad]
    assert {reason(record) for record in missing} == {"missing_transcript"}
    assert len(missing) == len(names) - len(expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"transcripts": "/nowhere.tsv"},
            r"no table of transcripts because there is no /nowhere\.tsv",
        ),
        ({"transcripts": "/dev/tty"}, r"/dev/tty is a device"),
        ({"transcripts": "/tmp"}, r"/tmp is a folder"),
        ({"layout": None}, r"first line is '001/0000.flac.*reazonspeech: file_name<tab>text"),
        ({"layout": "vits"}, r"by its layout vits"),
        ({"fields": {"text": "txet"}}, r"no column 'txet' for text"),
        (
            {"layout": None, "columns": ["id", "text"], "delimiter": "\t"},
            r"its columns are id, text",
        ),
    ],
)
def test_a_wrong_table_is_refused_before_any_work(tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message):
        source(reazonspeech(tmp_path), **changed).files()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "folder"}, "transcripts is for kind webdataset, not folder"),
        ({"transcripts": None}, "layout is for kind folder, or for transcripts"),
    ],
)
def test_keys_that_do_not_fit_together(changed: dict[str, str], message: str):
    with pytest.raises(ValidationError, match=message):
        SpeechSourceConfig.model_validate({"name": "s", **settings(Path("x"), **changed)})
