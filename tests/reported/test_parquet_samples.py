"""Instruction samples in Parquet."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from koe.errors import ConfigError
from tests.reported.parquet_files import TEXTS, samples, write


def test_messages_are_read_without_their_other_fields(tmp_path):
    late = np.datetime64("12000-01-01", "us")
    kind = pa.list_(
        pa.struct([("role", pa.string()), ("content", pa.string()), ("at", pa.timestamp("us"))])
    )
    at = pa.array([late, late])
    roles, texts = pa.array(["user", "assistant"]), pa.array(["問", "答"])
    said = pa.ListArray.from_arrays(
        [0, 2], pa.StructArray.from_arrays([roles, texts, at], fields=list(kind.value_type))
    )
    path = write(tmp_path / "a.parquet", {"messages": said})
    assert samples(path, "messages") == [[("問", "答")]]


MESSAGES = {"list": pa.list_, "large": pa.large_list, "fixed": lambda value: pa.list_(value, 2)}


@pytest.mark.parametrize("lists", MESSAGES)
@pytest.mark.parametrize("text", TEXTS)
def test_messages_of_every_type_of_list_and_of_text(tmp_path, lists, text):
    roles, texts = pa.array(["user", "assistant"]), pa.array(["問", "答"])
    parts = pa.struct([("role", TEXTS[text]), ("content", TEXTS[text])])
    message = pa.StructArray.from_arrays(
        [roles.cast(TEXTS[text]), texts.cast(TEXTS[text])], fields=list(parts)
    )
    kind = MESSAGES[lists](parts)
    if lists == "fixed":
        said: pa.Array = pa.FixedSizeListArray.from_arrays(message, type=kind)
    else:
        array = pa.ListArray if lists == "list" else pa.LargeListArray
        said = array.from_arrays([0, 2], message, type=kind)
    path = write(tmp_path / "a.parquet", {"messages": said})
    assert samples(path, "messages") == [[("問", "答")]]


@pytest.mark.parametrize(
    ("columns", "layout", "fields", "why"),
    [
        (
            {"q": ["a"], "output": ["b"]},
            "instruction",
            {},
            "no column 'instruction' for instruction",
        ),
        ({"instruction": ["a"]}, "instruction", {}, "no column 'output' for output"),
        (
            {"instruction": ["a"], "output": ["b"]},
            "instruction",
            {"system": "sys"},
            "no column 'sys' for system",
        ),
        ({"messages": ["[]"]}, "messages", {}, "holds string there, not a list of structs"),
        ({"conversations": [[{"role": "a", "content": "b"}]]}, "sharegpt", {}, "no column 'from'"),
        ({"messages": [[{"role": "a"}]]}, "messages", {}, "no column 'content' for content"),
    ],
)
def test_a_wrong_column_of_samples_is_refused_before_any_work(
    tmp_path, columns, layout, fields, why
):
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(ConfigError, match=why):
        samples(path, layout, **fields)
