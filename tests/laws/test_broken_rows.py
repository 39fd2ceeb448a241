"""A broken row of a table never takes a neighbour with it, in any kind of table and any unit."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from tests.stages.records import same_for_all_sizes

pytestmark = pytest.mark.law

TEXTS = [
    "一つ",
    "",
    "a, b; c",
    "x|y",
    '"はい"と',
    '"open',
    'close"',
    "  spaced ",
    "#1",
    "''",
    "a\\",
]
LINES = [
    "一行目\n二行目",
    "\nfirst",
    "last\n",
    "a, b\nc, d",
    'said ""\n"x"',
    "\n",
    "1\r\n2\n3",
    '",\n,"',
]
# Any line may stand where a row should: cut off, with quotes too many, of other cells, of no text.
BROKEN = [
    b'bad.wav,"open', b'"open', b'"', b'""', b'"""', b'bad.wav,"', b'"bad.wav","open', b'"bad.wav',
    b'bad.wav,"a"b', b'"a"b,c', b"bad.wav", b"bad.wav\tx\ty\tz", b"bad.wav|x|y|z", b"a,b,c,d",
    b"bad.wav,\xff\xfe", b"bad.wav\t\xff", b"bad.wav|\xff", b"bad.wav,\0", b"\0\0\0", b",,,x",
    b'","', b'",', b'bad.wav",x', b'text",', b"bad.wav\rx", b"\r", b'bad.wav,"x\r', b"\xff",
    b'bad.wav,close"', b'open,"bad.wav', b'"open,bad.wav', b"{}", b"</html>", b"bad.wav," + b"x" * 3000,
    b'bad.wav,"' + b"x" * 70_000, b"y" * 1_100_000,
]  # fmt: skip


def good_rows(number: int, comma: bool, chosen: random.Random) -> list[list[str]]:
    """Make rows of a name and a text; a table with quoting may have lines inside a text."""
    texts = [*TEXTS, *(LINES if comma else [])]
    rows = [[f"{index}.wav", chosen.choice(texts)] for index in range(number)]
    return rows if comma else [[name, text.replace("|", "")] for name, text in rows]


def row_bytes(row: list[str], delimiter: str, newline: str) -> bytes:
    if delimiter not in ",;":
        return (delimiter.join(row) + newline).encode()
    line = io.StringIO()
    quoting = csv.QUOTE_ALL if len(row[1]) % 3 == 0 else csv.QUOTE_MINIMAL
    csv.writer(line, delimiter=delimiter, lineterminator=newline, quoting=quoting).writerow(row)
    return line.getvalue().encode()


def kept(path: Path) -> dict[str, str]:
    """Read a table in units of several sizes; map the names of its usable rows to their texts."""
    records = same_for_all_sizes((1, 7, 1000), kind="folder", paths=[str(path)])
    return {r.fields["file_name"]: r.fields["text"] for r in records if not r.bad}


@pytest.mark.parametrize("text_first", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_broken_rows_take_no_neighbour_with_them(tmp_path, delimiter, newline, text_first):
    order = (1, 0) if text_first else (0, 1)
    path = tmp_path / "metadata.csv"
    for seed in range(12):
        chosen = random.Random(f"{seed}{delimiter}{newline}{text_first}")
        rows = good_rows(40, delimiter in ",;", chosen)
        header = [["file_name", "text"][index] for index in order]
        lines = [row_bytes([row[i] for i in order], delimiter, newline) for row in rows]
        places = sorted(chosen.choices(range(len(lines) + 1), k=seed), reverse=True)
        for place in places:
            broken = chosen.choice(BROKEN).replace(b",", delimiter.encode())
            lines.insert(place, broken + newline.encode())
        path.write_bytes(b"".join([row_bytes(header, delimiter, newline), *lines]))
        found = kept(path)
        missing = {name: text for name, text in rows if found.get(name) != text}
        assert missing == {}, f"{seed}: {len(places)} broken rows were inserted"
