"""The layouts of published corpora, and tables whose columns are given."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard
from pydantic import ValidationError

from koe.errors import ConfigError
from stages.sources.checks.first_records import check_first_records
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from stages.sources.tables.layouts import LAYOUTS, describe
from tests.stages.records import reason, same_for_all_sizes
from tests.stages.sources.table_files import folder, plan, texts

EXAMPLES = {
    "ljspeech": ("LJ001-0001|He said \"yes|He said yes\nLJ001-0002|12: or so\n",
                 ["wavs/LJ001-0001.wav", "wavs/LJ001-0002.wav"], ['He said "yes', "12: or so"]),
    "css10": ("meian/meian_0000.wav|医者は、下した。|isha wa|4.45\n",
              ["meian/meian_0000.wav"], ["医者は、下した。"]),
    "vits": ("wavs/0.wav|一つ\n", ["wavs/0.wav"], ["一つ"]),
    "vits_speaker": ("wavs/0.wav|3|一つ\n", ["wavs/0.wav"], ["一つ"]),
    "bert_vits": ("wavs/0.wav|mei|JP|一つ\n", ["wavs/0.wav"], ["一つ"]),
    "common_voice": ("client_id\tpath\tsentence\tup_votes\nc0\tcv_1.mp3\t\"はい、\t2\n",
                     ["clips/cv_1.mp3"], ['"はい、']),
    "reazonspeech": ("000/00f0.flac\t\"今日\"は晴れ\n", ["000/00f0.flac"], ['"今日"は晴れ']),
    "jsut": ("BASIC5000_0001:水を: マレーシアから\n", ["wav/BASIC5000_0001.wav"], ["水を: マレーシアから"]),
    "jvs": ("VOICEACTRESS100_001:また、\n", ["wav24kHz16bit/VOICEACTRESS100_001.wav"], ["また、"]),
    "librispeech": ("84-121123-0000 GO DO YOU  HEAR\n", ["84-121123-0000.flac"], ["GO DO YOU  HEAR"]),
    "list": ("a/1.wav  一つ 二つ\nb.wav\t三\t四\n", ["a/1.wav", "b.wav"], ["一つ 二つ", "三\t四"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_reads_the_lines_of_its_corpus(tmp_path, layout):
    content, paths, expected = EXAMPLES[layout]
    name = LAYOUTS[layout].file or "train.txt"
    (tmp_path / name).write_text(content)
    records = folder(tmp_path if LAYOUTS[layout].file else tmp_path / name, layout=layout)
    assert [record.audio.path for record in records] == [f"{tmp_path}/{path}" for path in paths]
    fields = SpeechSourceConfig(name="s", kind="folder", paths=["x"], layout=layout).fields
    assert [record.fields[fields.text] for record in records] == expected
    assert all(fields.speaker in {None, *record.fields} for record in records)


@pytest.mark.parametrize(
    ("line", "fitting"),
    [
        ("LJ001-0001|Hesaid|Hesaidyes", ["ljspeech", "vits_speaker"]),
        ("wavs/0.wav|一つ", ["ljspeech", "vits"]),
        ("wavs/0.wav|mei|JP|一つ", ["css10", "bert_vits"]),
        ("BASIC5000_0001:水を: マ", ["jsut", "jvs", "librispeech", "list"]),
        ("000/00f0.flac\t晴れ", ["reazonspeech"]),
        ("a;b;c", list(LAYOUTS)),
    ],
)
def test_a_first_line_that_is_no_header_is_shown_with_the_layouts(tmp_path, line, fitting):
    (tmp_path / "metadata.csv").write_text(f"{line}\n")
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path)
    said = str(caught.value)
    assert f"its first line is {line!r}" in said
    shown = [name for name in LAYOUTS if f"{name}: {describe(LAYOUTS[name])}" in said]
    assert shown == fitting
    assert all(name in said for name in LAYOUTS)


def test_a_layout_that_no_row_fits_is_refused_and_one_broken_row_is_not(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("wavs/0.wav|0|一つ\nwavs/1.wav|1|二つ\n")
    with pytest.raises(ConfigError, match=r"none of its first 2 rows fits.*'wavs/0.wav\|0\|一つ'"):
        plan(path, layout="vits")
    with pytest.raises(ConfigError, match="vits_speaker"):
        plan(path, layout="vits")
    path.write_text("wavs/0.wav|0|一つ\n" * 100 + "wavs/1.wav|二つ\n")
    assert texts(folder(path, layout="vits")) == ["二つ"]


def test_columns_are_given_where_no_layout_fits(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text('7;u1;S1;一つ\n8;u2;S2;"二つ; 三つ"\n')
    records = folder(
        path, columns=["number", "utterance", "who", "said"], delimiter=";",
        audio_path="audio/{who}/{utterance}.opus",
        fields={"text": "said", "speaker": "who", "id": "utterance"},
    )  # fmt: skip
    assert [record.audio.path for record in records] == [
        f"{tmp_path}/audio/S1/u1.opus",
        f"{tmp_path}/audio/S2/u2.opus",
    ]
    assert [(r.key, r.fields["said"], r.fields["who"]) for r in records] == [
        ("u1", "一つ", "S1"),
        ("u2", "二つ; 三つ", "S2"),
    ]


def test_a_header_without_the_audios_name_may_make_its_path(tmp_path):
    (tmp_path / "m.tsv").write_text("utterance\ttext\nu1\t一つ\n")
    (record,) = folder(tmp_path / "m.tsv", audio_path="{utterance}.wav")
    assert record.audio.path == f"{tmp_path}/u1.wav"


def test_fields_that_are_given_go_before_those_of_the_layout(tmp_path):
    (tmp_path / "validated.tsv").write_text("client_id\tpath\tsentence\tlocale\nc\t1.mp3\tx\tja\n")
    (record,) = folder(
        tmp_path, layout="common_voice", fields={"speaker": "locale"}, audio_root="/a"
    )
    assert record.audio.path == "/a/clips/1.mp3"
    config = {"name": "s", "kind": "folder", "paths": ["x"], "layout": "common_voice"}
    fields = SpeechSourceConfig.model_validate({**config, "fields": {"speaker": None}}).fields
    assert (fields.audio, fields.text, fields.speaker) == ("path", "sentence", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "manifest", "layout": "vits"},
            "layout is for kind folder, or for transcripts, not manifest",
        ),
        ({"kind": "webdataset", "audio_path": "{id}.wav"}, "audio_path is for kind folder"),
        ({"layout": "vits", "delimiter": "|"}, "has columns and delimiter of its own"),
        ({"columns": ["file_name", "text"]}, "columns needs delimiter"),
        ({"columns": ["text", "text"], "delimiter": "|"}, "repeats a name"),
        ({"columns": ["text"], "delimiter": "|"}, "at least 2"),
        ({"delimiter": "||"}, "at most 1"),
        ({"delimiter": '"'}, "cannot be a quote"),
        ({"audio_path": "wavs"}, "names no column in braces"),
        ({"audio_path": "{id"}, "names no column in braces"),
        ({"audio_path": "{id.__class__}"}, "names no column in braces"),
        ({"layout": "lj"}, "Input should be"),
    ],
)
def test_table_keys_that_do_not_fit_together(settings, message):
    with pytest.raises(ValidationError, match=message):
        SpeechSourceConfig.model_validate(
            {"name": "s", "kind": "folder", "paths": ["x"], **settings}
        )


def test_columns_without_the_audio_are_refused(tmp_path):
    (tmp_path / "m.txt").write_text("a|b\n")
    with pytest.raises(ConfigError, match=r"its columns are id, text, without audio_filepath or"):
        plan(tmp_path / "m.txt", columns=["id", "text"], delimiter="|")
    with pytest.raises(ConfigError, match="without name"):
        plan(tmp_path / "m.txt", columns=["id", "text"], delimiter="|", audio_path="{name}.wav")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_tables_may_be_compressed(tmp_path, pack):
    suffix = ".gz" if pack is gzip.compress else ".zst"
    text = "file_name,text\n" + "".join(f'{n}.wav,"t\n{n}"\n' for n in range(9))
    (tmp_path / "metadata.csv").write_text(text)
    plain = folder(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / f"metadata.csv{suffix}").write_bytes(pack(text.encode()))
    records = folder(tmp_path)
    assert texts(records) == [f"t\n{n}" for n in range(9)]
    assert [(r.key, r.audio) for r in records] == [(r.key, r.audio) for r in plain]


def test_paths_of_windows_and_absolute_ones(tmp_path):
    paths = [r"wavs\1.wav", r".\wavs\2.wav", "/data/3.wav", "../other/4.wav"]
    (tmp_path / "t.list").write_text("".join(f"{path}|x\n" for path in paths))
    records = folder(tmp_path / "t.list", layout="vits", allow_outside=True)
    assert [r.audio.path for r in records] == [
        f"{tmp_path}/wavs/1.wav",
        f"{tmp_path}/./wavs/2.wav",
        "/data/3.wav",
        f"{tmp_path}/../other/4.wav",
    ]


def test_comments_and_headers_of_lists_cost_no_other_row(tmp_path):
    lines = ["# made on Monday", "path|text", "1.wav|a", "", "   ", "# 2.wav", "3.wav|c # d", "|e"]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    records = folder(tmp_path / "t.txt", layout="vits")
    assert [reason(r) for r in records] == ["broken_row", "", "", "broken_row", "", "missing_audio"]
    assert texts(records) == ["text", "a", "c # d"]  # no audio is called path: ingest says so


def test_a_folder_with_a_table_in_parquet_is_told_the_kind(tmp_path):
    (tmp_path / "metadata.parquet").touch()
    with pytest.raises(ConfigError, match=r"metadata\.parquet.*kind to parquet.*file_name"):
        plan(tmp_path)


def test_a_cell_of_many_lines_in_the_place_of_the_name_is_looked_at_once(tmp_path):
    """A search that begins anew at each byte of it would not end."""
    name = b"x" * 900_000
    data = (
        b'text,file_name\n"open,"'
        + name
        + b"\n"
        + name[:100]
        + b'"\nb,2.wav\n"c,"'
        + name
        + b'\n"\n'
    )
    (tmp_path / "m.csv").write_bytes(data)
    assert texts(folder(tmp_path / "m.csv")) == ["b"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_said_of_columns_that_a_layout_knows(tmp_path, layout):
    content, _, _ = EXAMPLES[layout]
    (tmp_path / "train.txt").write_text(content)
    config = {"name": "s", "kind": "folder", "paths": [f"{tmp_path}/train.txt"], "layout": layout}
    source = speech_source(SpeechSourceConfig.model_validate(config), 2)
    units = list(source.units())
    for record in source.records_of(units[0]):
        assert record.audio
        Path(record.audio.path).parent.mkdir(parents=True, exist_ok=True)
        Path(record.audio.path).touch()
    assert check_first_records(source, units) == {}


def test_the_transcription_of_datasets_is_the_text(tmp_path):
    (tmp_path / "1.wav").touch()
    (tmp_path / "a.csv").write_text("file_name,transcription,speaker\n1.wav,x,p\n")
    (tmp_path / "b.jsonl").write_text(
        '{"file_name": "1.wav", "transcription": "x", "speaker": "p"}'
    )
    for name in ("a.csv", "b.jsonl"):
        config = {"name": "s", "kind": "folder", "paths": [f"{tmp_path}/{name}"]}
        source = speech_source(SpeechSourceConfig.model_validate(config), 2)
        (unit,) = source.units()
        assert [record.fields["text"] for record in source.read(unit)] == ["x"]
        note = "`speaker` looks like the speaker and is not read: fields.speaker"
        assert check_first_records(source, [unit]) == {note: 1}
        (record,) = folder(tmp_path / name, fields={"text": "transcription"})
        assert record.fields["transcription"] == "x"


def test_the_speaker_may_stand_in_the_path_or_in_the_id(tmp_path):
    for speaker in ("jvs001", "jvs002"):
        folder_of = tmp_path / f"jvs_ver1/{speaker}/parallel100"
        folder_of.mkdir(parents=True)
        (folder_of / "transcripts_utf8.txt").write_text("VOICEACTRESS100_001:また、\n")
    records = folder(tmp_path / "jvs_ver1/*/parallel100", layout="jvs")
    assert [record.fields["speaker"] for record in records] == ["jvs001", "jvs002"]
    (tmp_path / "84-121123.trans.txt").write_text("84-121123-0000 GO\nodd ONE\n")
    records = folder(tmp_path / "84-121123.trans.txt", layout="librispeech")
    assert [record.fields.get("speaker") for record in records] == ["84", None]


def test_a_hole_in_a_table_counts_as_the_rows_that_it_held(tmp_path):
    rows = [f"wavs/{n:06}.wav|文{n:06}".encode() for n in range(9000)]
    data = bytearray(b"\n".join(rows))
    size = len(rows[0]) + 1
    data[1000 * size : 5000 * size] = bytes(4000 * size)
    (tmp_path / "train.txt").write_bytes(data)
    units = plan(tmp_path / "train.txt", layout="vits")
    assert sum(unit.records for unit in units) == 5000
    assert sum(unit.gaps for unit in units) == 1
    assert sum(unit.lost_bytes for unit in units) == 4001 * size
    assert sum(unit.lost_records for unit in units) == 4001
    records = same_for_all_sizes(
        (999,), kind="folder", paths=[f"{tmp_path}/train.txt"], layout="vits"
    )
    assert [reason(record) for record in records] == [""] * 1000 + ["broken_row"] + [""] * 3999
