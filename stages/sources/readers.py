"""The reader of each kind of source."""

from __future__ import annotations

from stages.sources.base import SpeechFiles, TextFiles
from stages.sources.folder import FolderSource
from stages.sources.instructions import JsonArraySource, JsonLinesSource
from stages.sources.manifest import ManifestSource
from stages.sources.parquet import ParquetSpeechSource, ParquetTextSource
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from stages.sources.webdataset import WebDatasetSource

_SPEECH = {
    "webdataset": WebDatasetSource,
    "parquet": ParquetSpeechSource,
    "manifest": ManifestSource,
    "folder": FolderSource,
}
_TEXT = {"jsonl": JsonLinesSource, "json": JsonArraySource, "parquet": ParquetTextSource}


def speech_source(settings: SpeechSourceConfig, unit_records: int) -> SpeechFiles:
    """Make the reader of a speech source; a unit holds at most `unit_records` records."""
    return _SPEECH[settings.kind](settings, unit_records)


def text_source(settings: TextSourceConfig, unit_records: int) -> TextFiles:
    """Make the reader of an instruction source.

    Of its fields only the id matters here: the tokenize stage turns raw fields into turns.
    """
    return _TEXT[settings.kind](settings, unit_records)
