"""Sources of WebDataset tars, for tests."""

from __future__ import annotations

from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.stages.audio_files import sample
from tests.stages.records import reason

MEMBERS = [member for n in range(7) for member in sample(f"{n:03d}", 0.2)]


def source_of(path, unit_records=3, **fields):
    return speech_source(
        SpeechSourceConfig(name="wds", kind="webdataset", paths=[str(path)], fields=fields),
        unit_records,
    )


def read_all(source):
    """Read every unit; each must yield just what was planned."""
    return [record for unit in source.units() for record in source.records_of(unit)]


def gaps(records):
    """What the records say that stand for gaps."""
    return [record.bad.detail for record in records if reason(record) == "unreadable_bytes"]
