"""Parquet files and the samples that are read from them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.sources.readers import text_source
from stages.sources.settings import TextSourceConfig
from stages.text.conversation import turns


def samples(path: Path | str, layout: str = "instruction", **fields: str) -> list[Any]:
    config = TextSourceConfig(
        name="s", kind="parquet", layout=layout, paths=[str(path)], fields=fields
    )
    source = text_source(config, 1000)
    (unit,) = source.units()
    return [r.bad or turns(r.fields, layout, config.fields) for r in source.read(unit)]


def write(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


TEXTS = {
    "string": pa.string(),
    "large": pa.large_string(),
    "view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
}
