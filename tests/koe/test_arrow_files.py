"""Broken Arrow files end in typed errors, and nothing of them is read before it is proved sound."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.arrow_files import ArrowFile
from koe.errors import ContractError
from koe.schema import EXCLUDED, ORDER, ROW, SAMPLE
from tests.mutants import child, mutants
from tests.written_run import SPOKEN, WRITTEN, excluded, filled, row, sample


def written(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return sink.getvalue()


TABLES = {
    "shard": pa.Table.from_pylist(
        [row(("t/声", WRITTEN, "text", "t", 0), ("a/1", SPOKEN, "speech", "a0", 0))] * 6, schema=ROW
    ),
    "samples": filled(SAMPLE, [sample(f"a/{k}", SPOKEN) for k in range(6)]),
    "order": filled(ORDER, [{"shard": "train-00000", "row": k} for k in range(6)]),
    "excluded": pa.Table.from_pylist(
        [excluded(f"a/{k}", "ingest", "rejected", "low", "x") for k in range(6)], schema=EXCLUDED
    ),
}


def opened(data: bytes, name: str, columns: list[str] | None = None) -> ArrowFile:
    return ArrowFile(pa.BufferReader(data), name, schema=TABLES[name].schema, columns=columns)


def read(data: bytes, name: str, columns: list[str] | None) -> int | str:
    """Touch every value of a file; return the number of rows, or what is wrong with it."""
    try:
        return len(opened(data, name, columns).table().to_pylist())
    except ContractError as error:
        return str(error)


@pytest.fixture(scope="module")
def reader():
    with child() as pool:
        yield pool


@pytest.mark.law
@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutant_is_read_or_refused_and_never_kills_the_reader(reader, name, data):
    mutant = data.draw(mutants(written(TABLES[name])))
    columns = data.draw(st.sampled_from([None, TABLES[name].schema.names[:2]]))
    found = reader.submit(read, mutant, name, columns).result()
    assert isinstance(found, int) or name in found


def with_offset(value: int) -> bytes:
    """Return the samples with one offset of the token lists replaced in the file."""
    data = written(TABLES["samples"])
    offsets = (np.arange(5, dtype=np.int32) * len(SPOKEN)).tobytes()
    at = data.index(offsets) + 8
    return data[:at] + np.int32(value).tobytes() + data[at + 4 :]


@pytest.mark.parametrize("value", [-1, 0, 2**31 - 1])
def test_offsets_that_lead_out_of_the_file_or_back_are_refused(value):
    with pytest.raises(ContractError, match=r"samples is not a complete Arrow file.*Run again"):
        opened(with_offset(value), "samples").table()


def test_text_that_is_not_utf8_is_refused():
    data = written(TABLES["shard"]).replace("声".encode(), b"\xff\xfe\xfd")
    with pytest.raises(ContractError, match=r"UTF-?8"):
        opened(data, "shard").table()


def test_a_column_that_is_missing_or_of_another_type_is_refused():
    table = TABLES["samples"]
    with pytest.raises(ContractError, match="samples has no column source"):
        opened(written(table.drop_columns(["source"])), "samples")
    assert opened(written(table.drop_columns(["source"])), "samples", ["id"]).table().num_rows == 6
    other = table.set_column(3, "frames", table["frames"].cast(pa.int64()))
    with pytest.raises(ContractError, match="its column frames holds int64, not int32"):
        opened(written(other), "samples", ["id", "frames"])
    twice = pa.table([table["id"], table["id"]], names=["id", "id"])
    with pytest.raises(ContractError, match="two columns of one name"):
        ArrowFile(pa.BufferReader(written(twice)), "samples", columns=["id"])


@pytest.mark.parametrize(
    ("values", "words"),
    [({"id": None}, "1 nulls in id"), ({"input_ids": [1, None]}, "inside the lists of input_ids")],
)
def test_nulls_that_the_schema_forbids_are_refused(values, words):
    rows = [TABLES["samples"].slice(0, 1).to_pylist()[0] | values]
    with pytest.raises(ContractError, match=f"samples holds .*{words}"):
        opened(written(pa.Table.from_pylist(rows, schema=SAMPLE)), "samples").table()


def test_a_source_that_cannot_be_read_is_no_fault_of_the_file():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    source = pa.PythonFile(Failing(written(TABLES["order"])), mode="r")
    with pytest.raises(OSError, match="Input/output error"):
        ArrowFile(source, "order")
