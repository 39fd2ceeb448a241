"""Tables: folders of audio with a metadata file, and the layouts of published corpora."""

from __future__ import annotations

import csv
import io
import re

import pytest

from koe.errors import ConfigError
from stages.sources.tables.rows import MAX_ROW_BYTES, Table, read_rows
from tests.stages.records import reason
from tests.stages.sources.table_files import folder, plan, texts

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
