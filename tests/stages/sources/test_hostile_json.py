"""Lines and arrays of JSON that try a parser: each broken record is quarantined, and no other."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import numpy as np
import pytest

from stages.sources.files import lines
from stages.sources.json_files import array as json_array
from tests.stages.records import clips_and_bad, conversations

GOOD = [json.dumps({"instruction": f"問{n}", "output": "答"}, ensure_ascii=False) for n in range(4)]
PAIRS = [[(f"問{n}", "答")] for n in range(4)]
LARGE = 500


def write(folder, kind, records):
    """Write records as lines or as an array; str may hold lone surrogates."""
    parts = [r if isinstance(r, bytes) else r.encode("utf-8", "surrogatepass") for r in records]
    path = folder / ("a.json" if kind == "json" else "a.jsonl")
    path.write_bytes(b"[" + b",\n".join(parts) + b"]" if kind == "json" else b"\n".join(parts))
    return path


BROKEN = {
    "lists that open": ("[" * 100_000, "more than 128 deep"),
    "lists": ("[" * 100_000 + "]" * 100_000, "more than 128 deep"),
    "objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "more than 128 deep"),
    "depth": ('{"instruction":"a","output":"b","x":' + "[" * 128 + "]" * 128 + "}", "128 deep"),
    "digits": ('{"instruction":"a","output":"b","n":' + "9" * 5000 + "}", "Exceeds the limit"),
    "lone surrogate": ('{"instruction":"\\ud800","output":"b"}', "not valid Unicode"),
    "lone surrogate in a key": (
        '{"\\udfff":1,"instruction":"a","output":"b"}',
        "not valid Unicode",
    ),
    "surrogate as bytes": ('{"instruction":"\ud800","output":"b"}', "not valid U"),
    "latin-1": (b'{"instruction":"\xe9t\xe9","output":"b"}', "not valid U"),
    "overlong": (b'{"instruction":"\xc0\xaf","output":"b"}', "not valid U"),
    "zero byte in a text": ('{"instruction":"a\0b","output":"b"}', ""),
    "zero bytes": ("\0\0\0\0\0", ""),
    "number": ("1", "expected an object, found a number"),
    "text": ('"x"', "expected an object, found text"),
    "null": ("null", "expected an object, found null"),
    "list": ("[1]", "expected an object, found a list"),
    "word": ("nil", "Expecting value"),
    "single quotes": ("{'instruction': 'a', 'output': 'b'}", "Expecting property name"),
    "comment": ('{"instruction": /* x */ "a", "output": "b"}', "Expecting value"),
    "unfinished escape": ('{"instruction":"\\u12","output":"b"}', "Invalid \\u"),
    "control character": ('{"instruction":"a\tb","output":"b"}', "Invalid control character"),
}


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("name", BROKEN)
def test_one_broken_record_costs_no_other(tmp_path, kind, name):
    bad, why = BROKEN[name]
    path = write(tmp_path, kind, [*GOOD[:2], bad, *GOOD[2:]])
    for size in (1, 3, 1000):
        kept, quarantined = conversations(size, kind=kind, paths=[str(path)])
        assert kept == PAIRS
        assert {reason for reason, _ in quarantined.values()} == {"broken_json"}
        assert any(why in detail for _, detail in quarantined.values())
        assert len(quarantined) == 1


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_what_is_odd_but_json_is_read(tmp_path, kind):
    odd = [
        '{"instruction":"\\ud83d\\ude00","output":"a\\u0000\\uffff"}',
        '{"":1,"instruction":"鍵","output":"なし"}',
        '{"instruction":"n","output":"m","x":[NaN,-Infinity,1e99999,-0,1E400]}',
        ' \t{ "instruction" : "空" ,\t"output":"白" }\r',
        '{"instruction":"深","output":"い","x":' + "[" * 127 + "]" * 127 + "}",
    ]
    path = write(tmp_path, kind, odd)
    kept, quarantined = conversations(kind=kind, paths=[str(path)])
    assert quarantined == {}
    assert [pairs[0][0] for pairs in kept] == ["😀", "鍵", "n", "空", "深"]
    assert kept[0][0][1] == "a\0\uffff"


@pytest.mark.parametrize("kind", ["jsonl", "json", "manifest"])
@pytest.mark.parametrize("field", ["instruction", "input", "text", "offset", "audio_filepath"])
def test_nesting_of_any_depth_breaks_a_record_at_most(tmp_path, kind, field):
    """What is nested less than Python's limit must not meet one behind the parser."""
    deep = [
        json.dumps({"instruction": "a", "audio_filepath": "a.wav", "text": "a", "output": "b"})[:-1]
        + f', "{field}": {"[" * depth}{"]" * depth}}}'
        for depth in (1, 200, *range(880, 1000, 3))
    ]
    path = write(tmp_path, kind, [*GOOD[:2], *deep, *GOOD[2:]])
    if kind == "manifest":
        kept, quarantined = clips_and_bad(kind=kind, paths=[str(path)])
        assert kept == []
        assert len(quarantined) == len(deep) + 4
    else:
        kept, quarantined = conversations(kind=kind, paths=[str(path)])
        assert [pairs for pairs in kept if pairs in PAIRS] == PAIRS
        assert len(kept) + len(quarantined) == len(deep) + 4


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_at_the_start_and_ends_of_lines(tmp_path, end, mark):
    (tmp_path / "a.json").write_text(f"{mark}[{end}{f',{end}'.join(GOOD)}{end}]{end}", newline="")
    (tmp_path / "a.jsonl").write_text(mark + end.join(GOOD) + end + end, newline="")
    for kind in ("json", "jsonl"):
        assert conversations(kind=kind, paths=[f"{tmp_path}/a.{kind}"]) == (PAIRS, {})


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("[{}]".encode("utf-16"), "UTF-16"),
        ("[{}]".encode("utf-16-le"), "UTF-16"),
        ("[{}]".encode("utf-16-be"), "UTF-16"),
        ("[{}]".encode("utf-32"), "UTF-32"),
        (gzip.compress(b"[{}]", mtime=0), "gzip"),
        (b"PK\x03\x04\x14\0\0\0", "ZIP"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ],
)
def test_a_file_of_another_kind_says_what_it_is(tmp_path, data, name):
    (tmp_path / "a.json").write_bytes(data)
    kept, quarantined = conversations(kind="json", paths=[f"{tmp_path}/a.json"])
    assert kept == []
    ((reason, detail),) = quarantined.values()
    assert reason == "unreadable_bytes"
    assert detail.startswith(f"{len(data)} bytes from byte 0 on: expected an array, found ")
    assert name in detail
    (tmp_path / "a.jsonl").write_bytes(data)
    kept, quarantined = conversations(kind="jsonl", paths=[f"{tmp_path}/a.jsonl"])
    assert kept == []
    assert name in next(iter(quarantined.values()))[1]


@pytest.mark.parametrize(
    "text", ["[" * 9000, '["' * 9000, '["\\' * 9000, "[{{" * 9000, '["a' + "x" * 9000]
)
def test_what_never_closes_is_read_once(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    kept, quarantined = conversations(kind="json", paths=[f"{tmp_path}/a.json"])
    assert kept == []
    assert 1 <= len(quarantined) <= 2


def sized(size):
    """Make a sample of exactly so many bytes, all of them ASCII."""
    empty = json.dumps({"instruction": "", "output": "b"})
    return json.dumps({"instruction": "x" * (size - len(empty)), "output": "b"})


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("is_broken", [False, True])
def test_a_record_may_have_so_many_bytes_and_no_more(tmp_path, monkeypatch, kind, is_broken):
    monkeypatch.setattr(lines, "MAX_RECORD_BYTES", LARGE)
    monkeypatch.setattr(lines, "_PASSED_BYTES", 64)
    monkeypatch.setattr(json_array, "_MAX_ELEMENT_CHARS", LARGE)
    generator = np.random.default_rng(0)
    for _ in range(30):
        sizes = generator.choice([60, LARGE - 1, LARGE, LARGE + 1, LARGE + 70, 3 * LARGE], 6)
        monkeypatch.setattr(json_array, "_CHUNK_BYTES", int(generator.integers(1, 700)))
        monkeypatch.setattr(json_array, "_LONGEST_START", 64)
        # lines end with a line feed, which counts
        records = [sized(size - (kind == "jsonl")) for size in sizes]
        too_large = {place for place, size in enumerate(sizes) if size > LARGE}
        if is_broken:
            records[2] = records[2].replace('"instruction"', "instruction", 1)
        path = write(tmp_path, kind, [*records, GOOD[0]])
        reads = [conversations(size, kind=kind, paths=[str(path)]) for size in (1, 2, 1000)]
        assert reads[0] == reads[1] == reads[2]
        kept, quarantined = reads[0]
        lost = too_large | ({2} if is_broken else set())
        assert [len(pairs[0][0]) for pairs in kept[:-1]] == [
            len(json.loads(record)["instruction"])
            for place, record in enumerate(records)
            if place not in lost
        ]
        assert kept[-1] == PAIRS[0]
        reasons = [reason for reason, _ in quarantined.values()]
        assert len(reasons) <= len(lost)
        if not is_broken:
            assert reasons == ["record_too_large"] * len(reasons)
            assert bool(reasons) == bool(too_large)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "json", "manifest"])
def test_memory_does_not_grow_with_a_line(tmp_path, kind):
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write((b"[" if kind == "json" else b"") + GOOD[0].encode() + b",\n"[kind != "json" :])
        file.write(b'{"instruction": "')
        for _ in range(300):
            file.write(b"x" * (1 << 20))
        file.write(b'"}' + b",\n"[kind != "json" :] + GOOD[1].encode() + b"]"[kind != "json" :])
    tracemalloc.start()
    if kind == "manifest":
        kept, quarantined = clips_and_bad(kind=kind, paths=[str(path)])
        assert len(quarantined) == 3
    else:
        kept, quarantined = conversations(kind=kind, paths=[str(path)])
        assert kept == PAIRS[:2]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "record_too_large" in {reason for reason, _ in quarantined.values()}
    assert peak < 5 * lines.MAX_RECORD_BYTES
