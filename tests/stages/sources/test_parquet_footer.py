"""The counts of a Parquet footer equal those of pyarrow, and damage in it ends no process."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.sources.parquet.footer import Counts, null_counts

COLUMNS = {
    "text": ["a", None, "b", None, "c", "d", None],
    "number": [1, 2, None, 4, 5, 6, 7],
    "real": [0.5, None, None, 1.5, 2.5, None, 3.5],
    "flag": [True, None, False, True, None, True, False],
    "empty": [None] * 7,
    "audio": [{"bytes": b"x", "path": None}, None, {"bytes": None, "path": "a"}] + [{"bytes": b"y", "path": "b"}] * 4,
    "words": [["a"], [], None, ["b", None], ["c"], ["d"], []],
    "pairs": [[("a", 1)], None, [], [("b", 2)], [], [], [("c", None)]],
}  # fmt: skip
TABLE = pa.table(
    {**{key: pa.array(values) for key, values in COLUMNS.items() if key != "pairs"},
     "pairs": pa.array(COLUMNS["pairs"], pa.map_(pa.string(), pa.int32()))}
)  # fmt: skip


def by_pyarrow(path):
    metadata = pq.read_metadata(path)
    found = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(at) for at in range(group.num_columns)]
        found.append(
            {
                column.path_in_schema: Counts(
                    column.num_values,
                    column.statistics.null_count
                    if column.statistics and column.statistics.has_null_count
                    else None,
                )
                for column in columns
            }
        )
    return found


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.6"])
def test_counts_are_those_of_pyarrow(tmp_path, rows, statistics, version):
    path = str(tmp_path / "t.parquet")
    pq.write_table(TABLE, path, row_group_size=rows, write_statistics=statistics, version=version)
    assert null_counts(path, "") == by_pyarrow(path)


def test_a_wide_footer_is_read(tmp_path):
    path = str(tmp_path / "t.parquet")
    wide = pa.table({f"column {n}": np.arange(40) for n in range(300)})
    pq.write_table(wide, path, row_group_size=10, write_page_index=True)
    assert null_counts(path, "") == by_pyarrow(path)


def test_a_damaged_footer_gives_counts_or_none(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(TABLE, path, row_group_size=2)
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    chosen = random.Random(0)
    for number in range(2000):
        data = bytearray(whole)
        for _ in range(chosen.randrange(1, 6)):
            data[chosen.randrange(footer, len(data))] = chosen.randrange(256)
        path.write_bytes(
            data[: chosen.randrange(footer, len(data) + 1)] if number % 3 == 0 else data
        )
        for group in null_counts(str(path), str(number)):
            assert all(isinstance(counts.values, int) for counts in group.values())


@pytest.mark.parametrize("data", [b"", b"PAR1", b"\xff\xff\xff\xffPAR1", b"x" * 100, b"\x1c" * 999])
def test_what_is_no_parquet_file_has_no_counts(tmp_path, data):
    for place, end in enumerate((b"", (len(data)).to_bytes(4, "little") + b"PAR1")):
        path = tmp_path / f"{place}"
        path.write_bytes(data + end)
        assert null_counts(str(path), "") == []
