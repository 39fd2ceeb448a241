"""What ingest and the decoder make of a source, by the ids of its records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from koe.schema import unit_table
from stages.audio.decode import decode
from stages.ingest import IngestStage
from stages.sources.base import SpeechFiles
from stages.sources.location import read_clips


def outcomes(source: SpeechFiles) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Run the stage unit by unit: what it keeps and what it does not, which add up."""
    for unit in source.units():
        outcome = IngestStage((source,)).open()(unit_table([unit]))
        assert outcome.kept.num_rows + outcome.quarantined.num_rows == unit.records
        yield outcome.kept, outcome.quarantined


def ingested(source: SpeechFiles) -> tuple[dict[str, dict], dict[str, tuple[str, str]]]:
    """Return the kept rows, and reason and detail of the others, by ids without the source."""
    kept: dict[str, dict[str, Any]] = {}
    left: dict[str, tuple[str, str]] = {}
    for rows, others in outcomes(source):
        for row in rows.to_pylist():
            assert kept.setdefault(row["id"].partition("/")[2], row) is row
        left |= {
            row["id"].partition("/")[2]: (row["reason"], row["detail"])
            for row in others.to_pylist()
        }
    return kept, left


def reasons(source: SpeechFiles) -> dict[str, str]:
    """Return the reasons of the records that are not kept."""
    return {key: reason for key, (reason, _) in ingested(source)[1].items()}


def waves(source: SpeechFiles) -> dict[str, np.ndarray]:
    """Decode every clip that is kept: float32 [samples] by id."""
    found = {}
    for table, _ in outcomes(source):
        for row, data in zip(
            table.to_pylist(), read_clips(table, source.index_folder), strict=True
        ):
            assert isinstance(data, bytes)
            part = row["start_seconds"], row["seconds"], row["channel"]
            found[row["id"].partition("/")[2]] = decode(data, *part)[0]
    return found
