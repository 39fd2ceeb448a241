"""Clips that repeat others, compared with a plain implementation of the same rules."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.errors import StageError
from koe.schema import ENCODED, REJECTED
from stages.packing import duplicates as module
from stages.packing.duplicates import repetitions
from stages.packing.leaving import Clips
from stages.packing.order import UnitSamples, plan_order, unit_samples
from stages.settings import DuplicatesConfig, InterleaveSettings
from tests.stages.samples import excluded, speech_unit, text_unit
from tests.written_run import filled

CODES = {"audio": module.SAME_AUDIO, "codes": module.SAME_CODES, "text": module.SAME_TEXT}
KEEP = dict.fromkeys(CODES, "keep")


def drop(*kinds: str) -> DuplicatesConfig:
    return DuplicatesConfig(**KEEP | dict.fromkeys(kinds, "drop"))


def clip(number: int, folder=None, audio: int = 0, **values: Any) -> dict[str, Any]:
    """A clip whose codes follow from its audio."""
    row = {
        "id": f"s/{number}", "source": "s", "text": "声", "speaker": None, "seconds": 1.0,
        "codes": [audio // 2] * 7, "frames": 1, "audio_kind": "file", "audio_bytes": 1,
        "audio_path": str(folder / str(audio)) if folder else "",
    }  # fmt: skip
    return row | values


def in_units(clips: list[dict[str, Any]], sizes: list[int]) -> list[Clips]:
    units, begin = [], 0
    for size in sizes:
        table = filled(ENCODED, clips[begin : begin + size])
        units.append(Clips(begin, table.select))
        begin += size
    return units


def plainly(clips, free, wanted, data) -> dict[int, int]:
    """Go through the clips in order; remember what each that stays is equal to."""
    out: dict[int, int] = {}
    stays: set[tuple] = set()
    for number, clip in enumerate(clips):
        if not free[number]:
            continue
        part = (clip["start_seconds"], clip["seconds"], clip["channel"])
        keys = {
            "audio": (data[clip["audio_path"]], part),
            "codes": tuple(clip["codes"]),
            "text": (clip["source"], clip["speaker"], clip["text"]) if clip["speaker"] else None,
        }
        mine = [(kind, keys[kind]) for kind in wanted if keys[kind] is not None]
        equal = [kind for kind, key in mine if (kind, key) in stays]
        if equal:
            out[number] = CODES[equal[0]]
        else:
            stays |= set(mine)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four files of audio; two of them hold the same bytes, and two more the same codes."""
    folder = tmp_path_factory.mktemp("audio")
    for name, data in (("0", b"x"), ("1", b"y"), ("2", b"z"), ("3", b"z")):
        (folder / name).write_bytes(data)
    return folder


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "audio": st.integers(0, 3),
            "text": st.sampled_from(["あ", "いい", "声" * 30]),
            "speaker": st.sampled_from([None, "", "花子", "太郎"]),
            "start_seconds": st.sampled_from([0.0, 1.0]),
            "channel": st.sampled_from([None, 0]),
            "free": st.booleans() | st.just(True),
        }
    ),
    max_size=40,
)


@pytest.mark.law
@settings(max_examples=150, deadline=None)
@given(
    ROWS,
    st.lists(st.integers(0, 15), max_size=5),
    st.lists(st.sampled_from(list(CODES)), unique=True),
    st.sampled_from([None, 2]),
)
def test_the_first_stays_and_others_leave_as_plain_code_has_it(
    folder, rows, sizes, dropped, num_hashes
):
    free = np.array([row.pop("free") for row in rows], bool)
    clips = [clip(number, folder, **row) for number, row in enumerate(rows)]
    data = {str(path): path.read_bytes() for path in folder.iterdir()}
    sizes = [*sizes, len(clips)]
    wanted = [kind for kind in CODES if kind in dropped]  # in the order of strictness
    with pytest.MonkeyPatch.context() as patch:
        if num_hashes:  # hashes that collide must decide nothing
            patch.setattr(module, "hash", lambda key: hash(key) % num_hashes, raising=False)
        left = repetitions(in_units(clips, sizes), free, drop(*wanted))
    found = dict(zip(left.numbers.tolist(), left.codes.tolist(), strict=True))
    assert found == plainly(clips, free, wanted, data)
    for number, value in zip(left.numbers, left.values, strict=True):
        assert value < number
        assert free[int(value)]
        assert int(value) not in found


def test_nothing_is_read_where_nothing_is_asked_for():
    assert not len(repetitions([Clips(0, pytest.fail)], np.ones(1, bool), drop()).numbers)


def test_audio_is_read_only_where_codes_and_sizes_agree(tmp_path, monkeypatch):
    read = []

    def read_clips(clips, index_folder):
        assert index_folder == "index"
        read.extend(clips["id"].to_pylist())
        return (b"" for _ in range(clips.num_rows))

    monkeypatch.setattr(module, "read_clips", read_clips)
    clips = [clip(0), clip(1, audio=2), clip(2, audio_bytes=2), clip(3), clip(4, start_seconds=1.0)]
    left = repetitions(in_units(clips, [2, 3]), np.ones(5, bool), drop("audio"), "index")
    assert read == ["s/0", "s/3"]
    assert left.numbers.tolist() == [3]


def test_audio_that_is_gone_is_named(tmp_path):
    (tmp_path / "0").write_bytes(b"x")
    clips = [clip(0, tmp_path), clip(1, tmp_path, audio=1)]
    with pytest.raises(
        StageError, match=r"audio of s/1 cannot be compared.*missing_audio"
    ) as found:
        repetitions(in_units(clips, [2]), np.ones(2, bool), drop("audio"))
    assert "interleave.duplicates.audio to keep" in found.value.remedy


def ordered(tables, clips, **keys):
    """Order units of samples made of the clips; a unit of text has none."""
    units, begin = [], 0
    for index, (name, table) in enumerate(tables.items()):
        is_text = table["modality"][0].as_py() == "text"
        part = None if is_text else filled(ENCODED, clips[begin : begin + len(table)]).select
        units.append(unit_samples(index, name, lambda table=table: table, part))
        begin += 0 if is_text else len(table)
    return plan_order(units, InterleaveSettings(seed=0, **keys))


def test_an_order_leaves_them_out_and_says_why():
    rng = np.random.default_rng(0)
    tables = {"a": speech_unit(rng, [3] * 30), "b": speech_unit(rng, [3] * 3, first=30)}
    tables["t"] = text_unit(rng, [50, 60])
    clips = [
        clip(
            n,
            source="jvs",
            text="あい" if n in (1, 7) else "う" * n,
            speaker="花子" if n in (1, 4, 7) else None,
            codes=[n % 31] * 7,
        )
        for n in range(33)
    ]
    order = ordered(tables, clips, duplicates=drop("codes", "text"))
    rows = excluded(order, REJECTED).to_pylist()
    assert [(row["id"], row["reason"], row["detail"]) for row in rows] == [
        ("jvs/7", "duplicate_text", "the same speaker and text as a#1"),
        ("jvs/31", "duplicate_codes", "the same codes as a#0"),
        ("jvs/32", "duplicate_codes", "the same codes as a#1"),
    ]
    assert order.reasons(REJECTED) == {"duplicate_codes": 2, "duplicate_text": 1}
    assert sum(number for _, number in order.placed_by_unit()) == 35 - 3


def test_a_clip_too_long_for_a_row_takes_none_with_it():
    tables = {"a": speech_unit(np.random.default_rng(0), [40, 3, 3])}
    clips = [clip(n, text="はい", speaker="花子") for n in range(3)]
    keys = {"max_row_tokens": 128, "duplicates": drop("text")}
    order = ordered(tables, clips, **keys)
    assert order.reasons(REJECTED) == {"duplicate_text": 1, "overlong": 1}
    order = ordered(tables, clips, **keys, overlong_speech="split")
    assert order.reasons(REJECTED) == {"duplicate_text": 2}


def test_the_bytes_of_an_order_are_those_of_before_where_all_is_off():
    rng = np.random.default_rng(0)
    table = speech_unit(rng, [3] * 9)
    plain = plan_order([unit_samples(0, "a", lambda: table)], InterleaveSettings(seed=0))
    off = ordered({"a": table}, [clip(n) for n in range(9)])
    assert off.table.equals(plain.table)
    assert "duplicates" not in InterleaveSettings(seed=0).content()
    on = InterleaveSettings(seed=0, duplicates=drop("codes"))
    assert on.content()["duplicates"] == KEEP | {"codes": "drop"}


def peak_bytes(number: int, duplicates: DuplicatesConfig) -> int:
    tracemalloc = pytest.importorskip("tracemalloc")
    size = 1000

    def read(unit: int, columns: list[str]) -> pa.Table:
        numbers = np.arange(unit * size, (unit + 1) * size)
        numbers[::50] = numbers[0]  # every fiftieth repeats another
        values = np.stack([numbers % 4000, numbers // 4000], axis=1).astype(np.int16).ravel()
        codes = pa.FixedSizeListArray.from_arrays(values, 2)
        return pa.table({"codes": codes.cast(ENCODED.field("codes").type)}).select(columns)

    def units():
        lengths, is_text = np.full(size, 100, np.int32), np.zeros(size, bool)
        for k in range(number // size):
            ids = np.arange(size * k, size * (k + 1))
            clips = partial(read, k)
            yield UnitSamples(
                k, f"u{k}", pytest.fail, ids, is_text, lengths, lengths // 8 - 2, clips
            )

    tracemalloc.start()
    try:
        order = plan_order(units(), InterleaveSettings(seed=0, duplicates=duplicates))
        left_out = number // 50 - number // size if duplicates.codes == "drop" else 0
        assert order.reasons(REJECTED).get("duplicate_codes", 0) == left_out
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_repetitions_need_no_more_memory_than_the_rows_do():
    """12 bytes a clip, and 8 while they are sorted, are gone before the rows are laid out."""
    number = 60_000
    plan_order([], InterleaveSettings(seed=0))
    assert peak_bytes(number, drop("codes")) < peak_bytes(number, drop()) + 8 * number
