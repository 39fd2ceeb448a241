from __future__ import annotations

import json

import numpy as np
import pytest

from koe.errors import ConfigError
from stages.sources.json_files import array as json_array
from stages.sources.readers import text_source
from stages.sources.settings import TextSourceConfig
from tests.real_data import TEXT
from tests.stages.audio_files import write_lines
from tests.stages.records import reason

SAMPLES = [
    {
        "index": str(n),
        "instruction": f"質問{n}" + ']},[{"',
        "output": "答\n" * (n % 5),
        "n": [n, {"x": None}],
    }
    for n in range(23)
]


def source_of(kind, path, unit_records=4, **fields):
    return text_source(
        TextSourceConfig(name="t", kind=kind, paths=[str(path)], fields=fields), unit_records
    )


def read_all(source):
    units = list(source.units())
    assert all(unit.records <= source.unit_records for unit in units)
    return [record for unit in units for record in source.records_of(unit)]


def good(records):
    return [record.fields for record in records if not record.bad]


def gaps(records):
    """What the records say that stand for gaps."""
    return [record.bad.detail for record in records if reason(record) == "unreadable_bytes"]


def write_array(path, samples=SAMPLES, indent=None):
    path.write_text(json.dumps(samples, ensure_ascii=False, indent=indent), encoding="utf-8")
    return path


@pytest.mark.parametrize("unit_records", [1, 4, 100])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk_bytes", [7, 64, 1 << 20])
def test_an_array_is_read_in_slices(tmp_path, monkeypatch, unit_records, indent, chunk_bytes):
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", chunk_bytes)
    path = write_array(tmp_path / "a.json", indent=indent)
    records = read_all(source_of("json", path, unit_records))
    assert [record.fields for record in records] == SAMPLES
    data = path.read_bytes()
    for record in records:
        at = int(record.location.rpartition("@")[2])
        assert data[at : at + 1] == b"{"


def test_lines_and_array_give_the_same_samples(tmp_path):
    array = write_array(tmp_path / "a.json")
    lines = write_lines(tmp_path / "a.jsonl", SAMPLES)
    ours = [read_all(source_of(kind, path)) for kind, path in (("json", array), ("jsonl", lines))]
    assert [r.fields for r in ours[0]] == [r.fields for r in ours[1]] == SAMPLES
    mapped = read_all(source_of("json", array, id="index"))
    assert [r.key for r in mapped] == [s["index"] for s in SAMPLES]
    assert len({r.key for r in ours[0]}) == len({r.key for r in ours[1]}) == len(SAMPLES)


@pytest.mark.parametrize("chunk_bytes", [16, 1 << 20])
def test_an_array_cut_anywhere_keeps_what_precedes(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", chunk_bytes)
    path = write_array(tmp_path / "a.json", SAMPLES[:4])
    data = path.read_bytes()
    for place in range(1, len(data)):
        path.write_bytes(data[:place])
        records = read_all(source_of("json", path, 2))
        kept = good(records)
        assert kept == SAMPLES[: len(kept)]
        whole = sum(
            place >= len(json.dumps(SAMPLES[: n + 1], ensure_ascii=False).encode()) - 1
            for n in range(4)
        )
        assert len(kept) == whole, place
        assert len(gaps(records)) == len(records) - len(kept) == 1, place


def test_an_element_that_is_broken_takes_no_other(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a": 2}, {"a": oops}, {"a": 4}]')
    records = read_all(source_of("json", path))
    assert good(records) == [{"a": 1}, {"a": 2}, {"a": 4}]
    (bad,) = (record for record in records if record.bad)
    assert (bad.key, reason(bad)) == ("a@21", "broken_json")
    assert "byte 21, character 6 of it" in bad.bad.detail


def test_a_broken_element_does_not_draw_the_file_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(json_array, "_MAX_ELEMENT_CHARS", 1000)
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a": "never closed ' + "x" * 100_000 + ' }, {"a": 3}]')
    held = []

    def watched(self, chars=1, grow=json_array._Text.grow):
        grow(self, chars)
        held.append(len(self.text))

    monkeypatch.setattr(json_array._Text, "grow", watched)
    source = source_of("json", path)
    assert good(read_all(source)) == [{"a": 1}, {"a": 3}]
    assert max(held) < 4000
    assert sum(unit.lost_records for unit in source.units()) > 1000


@pytest.mark.parametrize(
    ("content", "records", "why"),
    [
        ("[]", 0, None),
        (" [ ] \n", 0, None),
        ("\ufeff[{}]", 1, None),
        ("[{}] trailing", 1, "follows"),
        ("[{}, ]", 1, None),
        ("[{},, {}]", 2, None),
        ("[{} {}]", 2, None),
        ("[{}][{}]", 2, None),
        ("[{}", 1, "without a closing bracket"),
        ("5", 0, "array"),
        (" ", 0, "array"),
        ("[1, 23]", 2, None),
    ],
)
def test_odd_arrays(tmp_path, content, records, why):
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    found = read_all(source_of("json", path, 1))
    lost = gaps(found)
    assert len(found) - len(lost) == records
    assert len(lost) == (why is not None)
    assert why is None or why in lost[0]


@pytest.mark.parametrize("chunk_bytes", range(1, 8))
def test_a_number_at_the_edge_of_the_window_stays_whole(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "a.json"
    path.write_text("[123456789, 1.5e10, true, 7]")
    with path.open("rb") as file:
        elements = list(json_array.array_elements(file, 0))
    assert [value for _, _, value in elements] == [123456789, 1.5e10, True, 7]
    assert [(start, stop) for start, stop, _ in elements] == [(1, 10), (12, 18), (20, 24), (26, 27)]


def test_elements_that_are_no_clean_objects_are_broken(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[1, {"a": "\\ud800"}, {"a": "' + b'\xff"}, {"a": "\xe6\x96\x87"}]')
    records = read_all(source_of("json", path))
    assert [reason(r) for r in records] == ["broken_json", "broken_json", "broken_json", ""]


def test_json_lines_called_an_array_fail_before_any_work(tmp_path):
    path = write_lines(tmp_path / "a.json", SAMPLES)
    with pytest.raises(ConfigError, match="kind: jsonl"):
        list(source_of("json", path).units())


def test_broken_lines_are_records(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"a": 1}, "{", "", {"a": 2}, "null"])
    records = read_all(source_of("jsonl", path, 1))
    assert [reason(r) for r in records] == ["", "broken_json", "", "broken_json"]
    assert len({r.key for r in records}) == 4


def test_random_arrays_survive_every_chunk_size(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    letters = list('あ𠮷a"\\{}[], \n')
    for _ in range(20):
        samples = [
            {"t": "".join(generator.choice(letters, generator.integers(0, 30)))}
            for _ in range(generator.integers(0, 12))
        ]
        monkeypatch.setattr(json_array, "_CHUNK_BYTES", int(generator.integers(1, 40)))
        path = write_array(tmp_path / "a.json", samples)
        assert [r.fields for r in read_all(source_of("json", path))] == samples


def test_real_samples():
    path = TEXT / "dolly_ja.jsonl"
    records = read_all(source_of("jsonl", path, 14, id="index"))
    assert len(records) == len({record.key for record in records}) == 100
