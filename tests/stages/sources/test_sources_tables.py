"""Tables: folders of audio with a metadata file, and the layouts of published corpora."""

from __future__ import annotations

import csv
import gzip
import io
import re
from pathlib import Path

import pytest
import zstandard
from pydantic import ValidationError

from koe.errors import ConfigError
from stages.sources.checks.first_records import check_first_records
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from stages.sources.tables.layouts import LAYOUTS, describe
from stages.sources.tables.rows import MAX_ROW_BYTES, Table, read_rows
from tests.stages.records import reason, same_for_all_sizes


def folder(path: Path, **settings):
    return same_for_all_sizes(kind="folder", paths=[str(path)], **settings)


def plan(path: Path, **settings):
    config = {"name": "s", "kind": "folder", "paths": [str(path)], **settings}
    return list(speech_source(SpeechSourceConfig.model_validate(config), 2).units())


def texts(records) -> list[str]:
    return [record.fields["text"] for record in records if not record.bad]


ROWS = [
    ["1.wav", "ふつうの文"],
    ["2.wav", "改行を\n含む\r\n文"],
    ["3.wav", 'カンマ, と "引用符"'],
    ["4.wav", ""],
    ["5.wav", "最後"],
]


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_rows_may_span_lines(tmp_path, delimiter, newline):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=newline)
    writer.writerows([["file_name", "transcription"], *ROWS])
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + buffer.getvalue().encode() + b"\n\n")
    records = folder(tmp_path)
    assert [[r.fields["file_name"], r.fields["text"]] for r in records] == ROWS
    assert records[0].audio.path == f"{tmp_path}/1.wav"
    assert records[0].key == f"{tmp_path.name}/1.wav"


def test_an_unbalanced_quote_costs_its_own_row_only(tmp_path):
    lines = ["file_name,text", "1.wav,a", '2.wav,"never closed', "3.wav,b", '4.wav,"c, d"', "5.wav"]
    path = tmp_path / "m.csv"
    path.write_text("\n".join([*lines, "6.wav,e"]))
    records = folder(path)
    assert [reason(record) for record in records] == ["", "broken_row", "", "", "broken_row", ""]
    assert texts(records) == ["a", "b", "c, d", "e"]
    data = path.read_bytes()
    assert data[int(records[1].location.rpartition("@")[2]) :].startswith(b"2.wav")
    assert "not closed before the next row" in records[1].bad.detail
    assert "1 cells for 2 columns (file_name, text)" in records[4].bad.detail


@pytest.mark.parametrize(
    ("header", "lines", "kept"),
    [
        # a stray quote at the end of a later row is no closing quote
        ("file_name,text", ['1.wav,"open', "2.wav,b", '3.wav,c"'], ["b", 'c"']),
        ("file_name,text", ['1.wav,"open', '3.wav,c"'], ['c"']),
        ("text,file_name", ['"open,1.wav', "b,2.wav", 'c",3.wav'], ["b", 'c"']),
        ("text,file_name,n", ['"a\nb",1.wav,1', '"c, d\n""e""\n",2.wav,2'], ["a\nb", 'c, d\n"e"\n']),
        # lines of a transcript with as many commas as a row has are no rows
        ("file_name,text", ['1.wav,"yes,\nno, sir\n"', "2.wav,b"], ["yes,\nno, sir\n", "b"]),
        ("file_name,text", ['1.wav,"\nquote at the start"', "2.wav,b"], ["\nquote at the start", "b"]),
        ("file_name,text", ['1.wav,"open', '2.wav,"\nb"'], ["\nb"]),
        ("file_name,text", ['1.wav,"a"b', '2.wav,"b"'], ["b"]),
        ("file_name,text", ['1.wav,"open', '"2.wav","b, c"'], ["b, c"]),
        ("file_name,text,n", ['1.wav,"open', '2.wav,"b\nc",1'], ["b\nc"]),
        ("file_name,text", ["1.wav,a", ",,", ",", '2.wav,"open'], ["a"]),
    ],
)  # fmt: skip
def test_quotes_that_are_not_closed_or_not_opened(tmp_path, header, lines, kept):
    path = tmp_path / "m.csv"
    path.write_text("\n".join([header, *lines]))
    assert texts(folder(path)) == kept


def test_a_csv_cell_that_is_no_utf8_and_one_with_nul(tmp_path):
    (tmp_path / "m.csv").write_bytes(
        b'file_name,text\n1.wav,\xff\n2.wav,b\n3.wav,"\0\n"\n4.wav,d\n'
    )
    records = folder(tmp_path / "m.csv")
    assert texts(records) == ["b", "d"]
    assert [r.bad.detail.split(":")[0] for r in records if r.bad] == [
        "text is not valid UTF-8",
        "a cell holds a NUL character, as damaged files and other encodings do",
        "the quote of a cell is not closed before the next row, at byte 42",
    ]


@pytest.mark.parametrize("text", ["file_name,text\n1.wav,一つ\n", "1.wav|一つ\n2.wav|二つ\n"])
@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_wide_encodings_are_refused_by_a_name_that_iconv_knows(tmp_path, encoding, text):
    path = tmp_path / "m.csv"
    path.write_text(text, encoding=encoding)
    with pytest.raises(ConfigError, match=r"looks like text in UTF-.*koe reads UTF-8") as caught:
        plan(path, layout="vits" if "|" in text else None)
    (name,) = re.findall(r"iconv -f (\S+) -t UTF-8", str(caught.value))
    assert path.read_bytes().decode(name) == text


@pytest.mark.parametrize("encoding", ["CP932", "EUC-JP", "ISO-2022-JP"])
@pytest.mark.parametrize("layout", [None, "vits", "jsut"])
def test_japanese_encodings_are_refused_by_name(tmp_path, encoding, layout):
    mark = {None: ",", "vits": "|", "jsut": ":"}[layout]
    texts = ["東京", "これは本です。", "ハローワールド", "それから、行きました。"]
    lines = [f"{n}.wav{mark}{text}" for n, text in enumerate(texts)]
    lines = lines if layout else [f"file_name{mark}text", *lines]
    (tmp_path / "m.txt").write_bytes("\r\n".join(lines).encode(encoding))
    with pytest.raises(ConfigError, match=rf"looks like text in {encoding}.*iconv -f {encoding} "):
        plan(tmp_path / "m.txt", layout=layout)


def test_lines_of_another_encoding_among_others_are_broken_rows(tmp_path):
    lines = [
        f"{n}.wav,これは文{n}".encode("cp932" if n in {1, 3, 4} else "utf-8") for n in range(6)
    ]
    (tmp_path / "m.csv").write_bytes(b"\n".join([b"file_name,text", *lines]))
    records = folder(tmp_path / "m.csv")
    assert texts(records) == [f"これは文{n}" for n in (0, 2, 5)]
    assert [r.bad.reason for r in records if r.bad] == ["broken_row"] * 3


@pytest.mark.parametrize("mark", ["\t", "|"])
def test_tabs_and_bars_have_no_quoting(tmp_path, mark):
    rows = [["1.wav", '"all of it"'], ["2.wav", '"open'], ["3.wav", 'c"'], ["4.wav", "d, e"]]
    lines = [mark.join(row) for row in [["file_name", "text"], *rows]]
    (tmp_path / "m.tsv").write_text("\n".join(lines))
    assert texts(folder(tmp_path / "m.tsv")) == [text for _, text in rows]


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("mark", [",", "\t", "|"])
@pytest.mark.parametrize("newlines", ["\n\n", "\r\r", "\r\n", "\r\n\r\n", "\n\r"])
def test_lines_end_in_any_way(tmp_path, start, mark, newlines):
    """The header's line end, and that of the rows: feeds, returns, both, or mixed."""
    head, rest = (newlines[0], newlines[1]) if len(newlines) == 2 else ("\r\n", "\r\n")
    rows = [mark.join((f"{n}.wav", f"t{n}")) for n in range(5)]
    text = start + mark.join(("file_name", "text")) + head + rest.join(rows)
    (tmp_path / "m.txt").write_bytes(text.encode())
    assert texts(folder(tmp_path / "m.txt")) == [f"t{n}" for n in range(5)]


def test_a_return_inside_a_line_is_text_where_the_line_is_a_row(tmp_path):
    rows = [
        "1.wav\tone\rtwo",
        "2.wav\tb\r3.wav\tc\r4.wav\td",
        "5.wav\te\r",
        "6.wav\tf\r\r",
        "7.wav\tg",
    ]
    (tmp_path / "m.tsv").write_bytes("\n".join(["file_name\ttext", *rows]).encode())
    records = folder(tmp_path / "m.tsv")
    assert texts(records) == ["one\rtwo", "b", "c", "d", "e", "f", "g"]


def test_colons_of_a_file_with_returns_only_are_not_one_row(tmp_path):
    (tmp_path / "m.txt").write_bytes("a:い:ろ\rb:は\r".encode())
    records = folder(tmp_path / "m.txt", layout="jsut")
    assert texts(records) == ["い:ろ", "は"]


def test_lines_of_any_length_are_read_in_little_memory(tmp_path):
    class Counted(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            Counted.largest = max(Counted.largest, size)
            return super().read(size)

    long = b"x" * (5 * MAX_ROW_BYTES)
    rows = [
        b"1.wav,a",
        b"2.wav," + long,
        b'3.wav,"' + long + b'"',
        b"4.wav,d",
        b'5.wav,"open',
        long,
    ]
    data = Counted(b"\n".join([*rows, b"6.wav,f"]))
    found = list(read_rows(data, Table(",", ("file_name", "text")), 0, None))
    assert [row.cells[1:] for row in found] == [("a",), (), (), ("d",), (), (), ("f",)]
    assert [row.problem[:6] for row in found] == [
        "",
        "a line",
        "a line",
        "",
        "the qu",
        "a line",
        "",
    ]
    assert 0 < Counted.largest < MAX_ROW_BYTES
    for row in found:
        assert list(read_rows(data, Table(",", ("file_name", "text")), row.start, row.stop)) == [
            row
        ]


def test_a_header_may_use_bars(tmp_path):
    (tmp_path / "metadata.csv").write_text("text|file_name\na, b|1.wav\n")
    (record,) = folder(tmp_path)
    assert (record.fields["text"], record.key) == ("a, b", f"{tmp_path.name}/1.wav")


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        ("path,text\n", {}, "no column of audio paths"),
        ("file_name,txet\n", {}, "did you mean 'txet'"),
        ("file_name,text\n", {"id": "uid"}, "no column 'uid' for id"),
        ("file_name,text\n", {"audio": "wav"}, "without wav"),
        ("file_name,text,text\n", {}, "repeats a column"),
        ("a_file_name,b_file_name,text\n", {}, "no column of audio paths"),
    ],
)
def test_wrong_columns_fail_before_any_work(tmp_path, content, fields, message):
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, fields=fields)


def test_a_folder_needs_one_metadata_file(tmp_path):
    with pytest.raises(ConfigError, match=r"neither metadata.csv nor .* nor metadata.jsonl"):
        plan(tmp_path)
    with pytest.raises(ConfigError, match=r"no validated.tsv"):
        plan(tmp_path, layout="common_voice")
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("file_name,text\n")
    with pytest.raises(ConfigError, match=r"metadata\.csv and metadata\.jsonl"):
        plan(tmp_path)


def test_several_folders_by_glob(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.csv").write_text("file_name,text\n1.wav,x\n")
    records = folder(f"{tmp_path}/*")
    assert [record.key for record in records] == ["a/1.wav", "b/1.wav"]


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
    paths = [r"wavs\1.wav", r".\wavs\2.wav", "/data/3.wav", "../other/4.wav", "s3://b/5.wav"]
    (tmp_path / "t.list").write_text("".join(f"{path}|x\n" for path in paths))
    records = folder(tmp_path / "t.list", layout="vits")
    assert [r.audio.path for r in records] == [
        f"{tmp_path}/wavs/1.wav",
        f"{tmp_path}/./wavs/2.wav",
        "/data/3.wav",
        f"{tmp_path}/../other/4.wav",
        "s3://b/5.wav",
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
