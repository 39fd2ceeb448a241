"""What the first records tell of a source that cannot be read as it is configured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from koe.errors import ConfigError
from stages.sources.checks.first_records import FIRST_RECORDS, check_first_records
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from tests.stages.audio_files import clip, sample, write_lines, write_tar

CLIP = {"audio_filepath": "1.wav", "text": "文"}
PAIR = {"instruction": "問", "output": "答"}


def check(kind: str, *paths: str | Path, layout: str | None = None, **settings: Any) -> None:
    """Plan a source and check it as `koe plan` does; a source of text has a layout or is of JSON."""
    where: dict[str, Any] = {"name": "s", "kind": kind, "paths": [str(path) for path in paths]}
    if layout or kind in ("jsonl", "json"):
        config = TextSourceConfig(**where, layout=layout or "instruction", **settings)
        source: Any = text_source(config, 200)
    else:
        source = speech_source(SpeechSourceConfig(**where, **settings), 200)
    check_first_records(source, list(source.units()))


def refusal(kind: str, *paths: str | Path, **settings: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        check(kind, *paths, **settings)
    return str(refused.value)


def written(folder: Path, name: str) -> Path:
    """Write a file of a format."""
    path = folder / name
    table = pa.table({"text": ["文"], "audio": [clip()]})
    array = json.dumps([PAIR, PAIR]).encode()
    data = {
        "array.json": array,
        "bom.json": b"\xef\xbb\xbf \n" + array,
        "lines.jsonl": b"\n".join([json.dumps(PAIR | CLIP).encode()] * 2),
        "hidden.jsonl": b"\x1f\x8b\x08\x00" + bytes(40),
        "clip.m4a": b"\0\0\0\x20ftypM4A " + bytes(40),
        "clip.wav": clip(kind="wav"),
        "clip.flac": clip(),
        "clip.opus": clip(kind="opus"),
        "pointer.jsonl": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "page.jsonl": b"<!DOCTYPE html><p>Not found</p>",
        "archive.zip": b"PK\x03\x04" + bytes(40),
        "base.sqlite": b"SQLite format 3\0" + bytes(40),
    }
    if name in data:
        path.write_bytes(data[name])
    elif name == "rows.parquet":
        pq.write_table(table, path)
    elif name == "clips.tar":
        write_tar(path, sample("1"))
    elif name == "feather.arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        raise AssertionError(name)
    return path


@pytest.mark.parametrize(
    ("kind", "name", "what", "remedy"),
    [
        ("jsonl", "array.json", "it is an array of JSON", "Set kind: json."),
        ("jsonl", "bom.json", "it is an array of JSON", "Set kind: json."),
        ("manifest", "array.json", "it is an array of JSON", "Write one JSON object on each line"),
        ("jsonl", "rows.parquet", "it is a Parquet file", "Set kind: parquet."),
        ("json", "rows.parquet", "it is a Parquet file", "Set kind: parquet."),
        ("webdataset", "rows.parquet", "it is a Parquet file", "Set kind: parquet."),
        ("parquet", "clips.tar", "it is a tar archive", "Set kind: webdataset."),
        ("manifest", "clips.tar", "it is a tar archive", "Set kind: webdataset."),
        ("jsonl", "clips.tar", "it is a tar archive", "Unpack it."),
        ("parquet", "lines.jsonl", "it is made of JSON objects", "Set kind: manifest."),
        ("webdataset", "lines.jsonl", "it is made of JSON objects", "Set kind: manifest."),
        ("parquet", "feather.arrow", "it is an Arrow file", "to_parquet(file), and set kind"),
        ("manifest", "clip.m4a", "it is an audio file", "Name the file that lists the clips"),
        ("jsonl", "hidden.jsonl", "it is a gzip stream", "a name that ends in .gz"),
        ("jsonl", "archive.zip", "it is a ZIP file", "Unpack it"),
        ("jsonl", "pointer.jsonl", "a pointer of Git LFS: `git lfs pull`", ""),
        ("jsonl", "page.jsonl", "a page of HTML or XML", "Write what it holds"),
        ("parquet", "base.sqlite", "an SQLite database", "Write what it holds as Parquet"),
        *(
            (kind, f"clip.{ending}", "it is an audio file", "Name the file that lists the clips")
            for kind in ("manifest", "parquet", "webdataset")
            for ending in ("wav", "flac", "opus")
        ),
    ],
)
def test_a_file_of_another_format_is_named_with_the_remedy(tmp_path, kind, name, what, remedy):
    found = refusal(kind, written(tmp_path, name)) if not name.endswith(".zip") else None
    if found is None:  # refused by its ending, before it is opened
        assert "can be read from the middle" in refusal(kind, written(tmp_path, name))
        return
    assert f"source s, which is of kind {kind}, can read no record of {tmp_path}/{name}" in found
    assert what in found
    assert remedy in found


@pytest.mark.parametrize("kind", ["jsonl", "json", "manifest"])
@pytest.mark.parametrize("encoding", ["UTF-16", "CP932", "EUC-JP", "ISO-2022-JP"])
def test_text_in_another_encoding_is_named(tmp_path, kind, encoding):
    record = {"instruction": "これはなんですか", "output": "これはペンです", **CLIP}
    mark, lines = ",\n", [json.dumps(record, ensure_ascii=False)] * 3
    text = f"[{mark.join(lines)}]" if kind == "json" else "\n".join(lines)
    (tmp_path / "a").write_bytes(text.encode(encoding))
    assert f"it looks like text in {encoding}" in refusal(kind, tmp_path / "a")


def test_a_file_of_another_format_among_good_ones_is_bad_records(tmp_path):
    write_lines(tmp_path / "b.jsonl", [PAIR])
    written(tmp_path, "array.json").rename(tmp_path / "a.jsonl")
    check("jsonl", tmp_path / "*.jsonl")


def test_what_datasets_saves_to_disk_is_refused_with_the_way_to_parquet(tmp_path):
    datasets.Dataset.from_list([PAIR] * 3).save_to_disk(tmp_path / "saved")
    found = refusal("parquet", tmp_path / "saved/*.arrow", layout="instruction")
    assert "it is an Arrow file, as `datasets` saves to disk" in found
    assert "datasets.load_from_disk(folder).to_parquet(file)" in found
    datasets.load_from_disk(str(tmp_path / "saved")).to_parquet(tmp_path / "a.parquet")
    check("parquet", tmp_path / "a.parquet", layout="instruction")
    assert "it is a folder" in refusal("parquet", tmp_path / "saved", layout="instruction")


@pytest.mark.parametrize(
    ("beside", "fields", "why"),
    [
        ({"text": 3}, {}, "take text from field 'text' because it must be text, and none of the 3"),
        ({"text": ["文"]}, {}, "the first is ['文']"),
        ({"offset": "00:01:02.5"}, {}, "take start_seconds from field 'offset'"),
        ({"offset": 0, "end": "0:01"}, {"end_seconds": "end"}, "take end_seconds from field 'end'"),
        ({"offset": 0, "duration": "1 s"}, {}, "take seconds from field 'duration'"),
        ({"by": ["a", "b"]}, {"speaker": "by"}, "take speaker from field 'by'"),
        ({"side": "left"}, {"channel": "side"}, "take channel from field 'side'"),
        (
            {"mos": "good"},
            {"ovrl": "mos"},
            "take ovrl from field 'mos' because it must be a number",
        ),
    ],
)
@pytest.mark.parametrize("root", ["local", "object store"])
def test_a_field_of_another_type_is_refused(tmp_path, beside, fields, why, root):
    (tmp_path / "1.wav").write_bytes(clip(kind="wav"))
    path = write_lines(tmp_path / "m.jsonl", [CLIP | beside] * 3)
    where = str(path)
    if root == "object store":
        for file in tmp_path.iterdir():
            fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{file.name}", file.read_bytes())
        where = f"memory://{tmp_path.name}/m.jsonl"
    assert why in refusal("manifest", where, fields=fields)
    write_lines(path, [CLIP | beside, CLIP])
    if "text" in beside:
        check("manifest", path, fields=fields)


@pytest.mark.parametrize(
    ("record", "layout", "why"),
    [
        (PAIR | {"output": ["答", "答"]}, "instruction", "take output from field 'output'"),
        (
            PAIR | {"input": 3},
            "instruction",
            "take input from field 'input' because it must be text",
        ),
        (PAIR | {"system": {"a": 1}}, "instruction", "take system from field 'system'"),
        (PAIR | {"history": "一"}, "instruction", "take history from field 'history'"),
        ({"messages": "[]"}, "messages", "field 'messages' because it must be a list"),
        (
            {"conversations": {"a": "b"}},
            "sharegpt",
            "field 'conversations' because it must be a list",
        ),
    ],
)
def test_a_field_of_samples_of_another_type_is_refused(tmp_path, record, layout, why):
    path = write_lines(tmp_path / "a.jsonl", [record] * 2)
    assert why in refusal("jsonl", path, layout=layout)


def test_a_length_that_is_not_read_may_be_anything(tmp_path):
    (tmp_path / "1.wav").write_bytes(clip(kind="wav"))
    path = write_lines(tmp_path / "m.jsonl", [CLIP | {"duration": "1 s", "side": "average"}])
    check("manifest", path, fields={"channel": "side"})


def test_gaps_in_a_table_are_no_other_type(tmp_path):
    (tmp_path / "1.wav").write_bytes(clip(kind="wav"))
    for gap in (None, "", float("nan")):
        check("manifest", write_lines(tmp_path / "m.jsonl", [CLIP | {"offset": gap}]))


def test_audio_of_which_nothing_is_there_is_refused_with_the_root(tmp_path):
    records = [CLIP | {"audio_filepath": f"clips/{n}.wav"} for n in range(250)]
    path = write_lines(tmp_path / "m.jsonl", records)
    found = refusal("manifest", path)
    assert "source s finds none of the audio that its first records name" in found
    assert f"the first is {tmp_path}/clips/0.wav: No such file or directory" in found
    assert "Set audio_root" in found
    (tmp_path / "else/clips").mkdir(parents=True)
    for number in range(0, 250, 2):
        (tmp_path / f"else/clips/{number}.wav").write_bytes(b"")
    check("manifest", path, audio_root=str(tmp_path / "else"))


def test_the_first_hundred_records_need_not_have_a_field(tmp_path):
    (tmp_path / "1.wav").write_bytes(b"")
    records = [CLIP] * (FIRST_RECORDS + 20) + [CLIP | {"speaker": "s"}]
    check("manifest", write_lines(tmp_path / "m.jsonl", records), fields={"speaker": "speaker"})
    why = "none of its first 121 records has it"
    assert why in refusal("manifest", tmp_path / "m.jsonl", fields={"speaker": "who"})
