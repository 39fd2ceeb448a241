"""What tests ask of the records of a source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from koe.errors import BadRecord, attempt
from koe.schema import unit_table
from koe.stage import check_outcome
from stages.ingest import IngestStage
from stages.sources.base import Record, SpeechFiles
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from stages.text.conversation import turns

Bad = dict[str, tuple[str, str]]  # reason and detail of quarantined records by their id


def reason(record: Record) -> str:
    """Return why a record cannot be used; empty for a good one."""
    return record.bad.reason if record.bad else ""


def read_all(source: SpeechFiles) -> list[Record]:
    """Read every unit of a source; each must hold as many records as were planned."""
    records: list[Record] = []
    for unit in source.units():
        part = list(source.read(unit))
        assert len(part) == unit.records <= source.unit_records
        records += part
    return records


def same_for_all_sizes(sizes: Iterable[int] = (1, 2, 3, 1000), **settings: Any) -> list[Record]:
    """Read a source of these settings in units of several sizes, which must agree."""
    config = SpeechSourceConfig.model_validate({"name": "s", **settings})
    first, *others = [read_all(speech_source(config, size)) for size in sizes]
    for other in others:
        assert repr(other) == repr(first)
    return first


def clips_and_bad(unit_records: int = 2, **settings: Any) -> tuple[list[dict[str, Any]], Bad]:
    """Ingest a source of speech; return the kept clips and the quarantined records.

    An id that is there again has stars behind it.
    """
    source = speech_source(
        SpeechSourceConfig.model_validate({"name": "s", **settings}), unit_records
    )
    stage, kept, bad = IngestStage((source,)), [], Bad()
    for unit in source.units():
        outcome = check_outcome(stage, unit.records, stage.open()(unit_table([unit])))
        kept += outcome.kept.to_pylist()
        for row in outcome.quarantined.to_pylist():
            times = sum(name.rstrip("*") == row["id"] for name in bad)
            bad[row["id"] + "*" * times] = (row["reason"], row["detail"])
    return kept, bad


def conversations(unit_records: int = 2, **settings: Any) -> tuple[list[Any], Bad]:
    """Read a source of text; return the turns of its samples, and the records that have none."""
    config = TextSourceConfig.model_validate({"name": "t", **settings})
    source, kept, bad = text_source(config, unit_records), [], Bad()
    for unit in source.units():
        for record in source.records_of(unit):
            found = record.bad or attempt(turns, record.fields, config.layout, config.fields)
            if isinstance(found, BadRecord):
                bad[record.key] = (found.reason, found.detail)
            else:
                kept.append(found)
    return kept, bad
