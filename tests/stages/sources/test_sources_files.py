from __future__ import annotations

import os

import fsspec
import pytest

from koe.errors import ConfigError, StorageError
from koe.schema import SPEECH
from stages.sources.base import Unit
from stages.sources.fields import lookup
from stages.sources.files.listing import expand, stem
from stages.sources.files.opening import join, open_unit, stamp
from stages.sources.files.path_ranges import expand_ranges
from stages.sources.planning import Gap, Slice, Span, cut, plan_units
from stages.sources.readers import text_source
from stages.sources.settings import TextSourceConfig
from tests.stages.audio_files import write_lines


def touch(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_globs_are_sorted_listed_once_and_named_from_their_root(tmp_path):
    for name in ("b/2.tar", "a/1.tar", "a/10.tar", "a/note.txt"):
        touch(tmp_path / name)
    files = expand("s", [f"{tmp_path}/*/*.tar", f"{tmp_path}/a/1.tar"])
    assert [file.relative for file in files] == ["a/1.tar", "a/10.tar", "b/2.tar"]
    assert [stem(file.relative) for file in files] == ["a/1", "a/10", "b/2"]
    assert files[0].path == str(tmp_path / "a/1.tar")


def test_a_literal_name_may_look_like_a_glob(tmp_path):
    path = touch(tmp_path / "take[1].jsonl")
    assert [file.path for file in expand("s", [str(path)])] == [str(path)]


@pytest.mark.parametrize("name", ["a.jsonl", "a_{0..1}.tar", "a[0].jsonl"])
def test_a_web_server_that_is_not_there_is_told_from_a_file_that_is_not_there(name):
    with pytest.raises(StorageError, match="cannot be reached"):
        expand("s", [f"http://127.0.0.1:9/{name}"])


RANGES = [
    ("a{0..2}.tar", ["a0.tar", "a1.tar", "a2.tar"]),
    ("a{00..02}.tar", ["a00.tar", "a01.tar", "a02.tar"]),
    ("a_{8..010}.tar", ["a_008.tar", "a_009.tar", "a_010.tar"]),
    ("audio__OP_0..1_CL_.tar", ["audio_0.tar", "audio_1.tar"]),
    ("{b,c}/{1..2}.tar", ["b/1.tar", "b/2.tar", "c/1.tar", "c/2.tar"]),
    ("{b,{c,d}{1..2}}.tar", ["b.tar", "c1.tar", "c2.tar", "d1.tar", "d2.tar"]),
    ("a{2..1}.tar", ["a2.tar", "a1.tar"]),
    ("{b,}x_OP_.tar{}", ["bx_OP_.tar{}", "x_OP_.tar{}"]),
    ("plain.tar", ["plain.tar"]),
]


@pytest.mark.parametrize(("pattern", "names"), RANGES)
def test_ranges_stand_for_the_names_that_shells_make_of_them(tmp_path, pattern, names):
    assert sorted(expand_ranges(pattern)) == sorted(names)
    for name in names:
        touch(tmp_path / name)
    found = expand("s", [f"{tmp_path}/{pattern}"])
    assert [file.path for file in found] == [f"{tmp_path}/{name}" for name in sorted(names)]
    assert [file.relative for file in found] == sorted(names)


def test_a_range_without_one_of_its_files_is_refused_by_name(tmp_path):
    for number in (0, 2):
        touch(tmp_path / f"a{number}.tar")
    with pytest.raises(ConfigError, match=r"cannot use .*/a1\.tar"):
        expand("s", [f"{tmp_path}/a{{0..2}}.tar"])
    assert len(expand("s", [f"{tmp_path}/a{{0,2}}.tar", f"{tmp_path}/a*.tar"])) == 2


def test_a_range_beyond_all_measure_is_refused(tmp_path):
    for pattern in ("a{0..99999999999}.tar", "{0..9999}/{0..9999}.tar"):
        with pytest.raises(ConfigError, match=r"more than 200,000 names.*with a glob"):
            expand("s", [f"{tmp_path}/{pattern}"])


def test_a_file_whose_name_looks_like_a_range(tmp_path):
    path = touch(tmp_path / "take{0..1}.jsonl")
    assert [file.path for file in expand("s", [str(path)])] == [str(path)]


@pytest.mark.parametrize("pattern", ["none.tar", "none/*.tar"])
def test_a_pattern_without_match_names_source_and_path(tmp_path, pattern):
    with pytest.raises(ConfigError, match=f"source s cannot use .*{pattern.replace('*', '.')}"):
        expand("s", [f"{tmp_path}/{pattern}"])


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="it is a folder"):
        expand("s", [str(tmp_path)])


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.jsonl.zst"])
def test_compressed_files_are_refused_before_any_work(tmp_path, name):
    touch(tmp_path / name)
    with pytest.raises(ConfigError, match="Decompress it first"):
        expand("s", [f"{tmp_path}/*"])


def test_two_files_of_one_name_are_refused(tmp_path):
    paths = [str(touch(tmp_path / folder / "x.tar")) for folder in "ab"]
    with pytest.raises(ConfigError, match=r"both called 'x\.tar'"):
        expand("s", paths)
    assert len(expand("s", [f"{tmp_path}/*/x.tar"])) == 2


def test_remote_files_are_planned_and_read_like_local_ones(tmp_path):
    records = [{"instruction": str(n)} for n in range(5)]
    local = write_lines(tmp_path / "a/1.jsonl", records)
    remote = fsspec.filesystem("memory")
    remote.pipe("/koe-files/a/1.jsonl", local.read_bytes())
    plans = []
    for root in (str(tmp_path), "memory://koe-files"):
        source = text_source(
            TextSourceConfig(name="t", kind="jsonl", paths=[f"{root}/*/*.jsonl"]), 2
        )
        units = list(source.units())
        read = [(r.key, r.fields) for unit in units for r in source.read(unit)]
        plans.append(([(u.unit, u.start, u.stop, u.records) for u in units], read))
    assert plans[0] == plans[1]
    assert [fields for _, fields in plans[0][1]] == records


def test_new_files_do_not_rename_units(tmp_path):
    def names():
        source = text_source(
            TextSourceConfig(name="t", kind="jsonl", paths=[f"{tmp_path}/*.jsonl"]), 1
        )
        return [unit.unit for unit in source.units()]

    write_lines(tmp_path / "m.jsonl", [{}, {}])
    before = names()
    write_lines(tmp_path / "a.jsonl", [{}])
    write_lines(tmp_path / "z.jsonl", [{}])
    after = names()
    assert len(before) == 2
    assert len(set(after)) == 4
    assert set(before) < set(after)


def test_the_stamp_follows_content_and_time(tmp_path):
    path = touch(tmp_path / "a", "one")
    first = stamp(str(path))
    os.utime(path, ns=(1, 1))
    second = stamp(str(path))
    touch(path, "three")
    assert len({first, second, stamp(str(path))}) == 3
    memory = fsspec.filesystem("memory")
    memory.pipe("/koe-stamp", b"x")
    assert stamp("memory://koe-stamp").startswith("1:")


def test_a_file_that_changed_since_planning_is_not_read(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{}])
    source = text_source(TextSourceConfig(name="t", kind="jsonl", paths=[str(path)]), 1)
    (unit,) = source.units()
    write_lines(path, [{}, {}])
    with pytest.raises(StorageError, match="changed since it was planned"):
        list(source.read(unit))
    path.unlink()
    with pytest.raises(StorageError, match="cannot be read"), open_unit(unit):
        pass


def test_slices_cover_all_records():
    spans = [(10 * n, 10 * n + 9) for n in range(5)]
    assert list(cut(spans, 2)) == [Slice(0, 19, 2), Slice(20, 39, 2), Slice(40, 49, 1)]
    assert list(cut(spans[:4], 2)) == [Slice(0, 19, 2), Slice(20, 39, 2)]
    assert list(cut([], 2)) == []


def test_a_gap_is_a_record_and_counts_what_it_held():
    """The records have 10 bytes each: a gap of 26 bytes held about 3, and any gap at least one."""
    spans = [(0, 10), Gap(10, 36, "damaged"), Span(36, 46, "x"), (46, 56), Gap(56, 56, "no end")]
    assert list(cut(spans, 2)) == [
        Slice(0, 36, 2, gaps=1, lost_bytes=26, lost_records=3),
        Slice(36, 56, 2, state="x"),
        Slice(56, 56, 1, gaps=1, lost_bytes=0, lost_records=1),
    ]
    (alone,) = cut([Gap(0, 70, "no record at all")], 2)
    assert alone == Slice(0, 70, 1, gaps=1, lost_bytes=70, lost_records=1)


def test_a_unit_names_its_source_and_slice(tmp_path):
    touch(tmp_path / "a")
    (unit,) = plan_units("s", SPEECH, expand("s", [f"{tmp_path}/a"]), lambda _: [Slice(0, 1, 1)])
    assert isinstance(unit, Unit)
    assert unit.unit.startswith("s-")
    assert unit.unit.endswith("-00000")


def test_joining_keeps_absolute_names():
    assert join("/folder/", "a/b") == "/folder/a/b"
    assert join("/root", "/a") == "/a"
    assert join("/root", "s3://b/a") == "s3://b/a"


def test_dotted_names_descend():
    fields = {"a": {"b": {"c": 1}}, "a.b": 2, "n": None}
    assert lookup(fields, "a.b.c") == 1
    assert lookup(fields, "a.b") == 2
    assert lookup(fields, "n.x") is None
    assert lookup(fields, None) is None


def test_known_files_are_not_scanned_again(tmp_path):
    for name in "ab":
        write_lines(tmp_path / f"{name}.jsonl", [{}, {}])
    source = text_source(TextSourceConfig(name="t", kind="jsonl", paths=[f"{tmp_path}/*.jsonl"]), 1)
    first = list(source.units())
    planned = {(unit.path, unit.stamp): [] for unit in first}
    for unit in first:
        planned[unit.path, unit.stamp].append(unit)
    (tmp_path / "b.jsonl").write_text("{}\n{}\n{}\n")  # has another stamp now
    asked = []

    def known(path, mark):
        asked.append(path)
        return planned.get((path, mark))

    second = list(source.units(known))
    assert asked == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"]
    assert second[:2] == first[:2]
    assert len(second) == 5
    assert second == list(source.units())
