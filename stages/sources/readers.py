"""The reader of each kind of source."""

from __future__ import annotations

from stages.sources.base import SpeechFiles, TextFiles
from stages.sources.json_files.instructions import JsonArraySource, JsonLinesSource
from stages.sources.json_files.manifest import ManifestSource
from stages.sources.lhotse.shar import shar_source
from stages.sources.parquet.source import ParquetSpeechSource, ParquetTextSource
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from stages.sources.tables.folder import FolderSource
from stages.sources.tars.nemo import NemoTarredSource
from stages.sources.tars.transcribed import TranscribedTars
from stages.sources.tars.webdataset import WebDatasetSource

_SPEECH = {
    "webdataset": WebDatasetSource,
    "parquet": ParquetSpeechSource,
    "manifest": ManifestSource,
    "folder": FolderSource,
    "shar": shar_source,
    "nemo_tarred": NemoTarredSource,
}
_TEXT = {"jsonl": JsonLinesSource, "json": JsonArraySource, "parquet": ParquetTextSource}


def speech_source(
    settings: SpeechSourceConfig, unit_records: int, index_folder: str = ""
) -> SpeechFiles:
    """Make the reader of a speech source; a unit holds at most `unit_records` records.

    Checkpoints of compressed files are kept in `index_folder`; nowhere if it is empty.
    """
    kind = TranscribedTars if settings.transcripts else _SPEECH[settings.kind]
    return kind(settings, unit_records, index_folder)


def text_source(settings: TextSourceConfig, unit_records: int, index_folder: str = "") -> TextFiles:
    """Make the reader of an instruction source, as `speech_source`.

    Of its fields only the id matters here: the tokenize stage turns raw fields into turns.
    """
    return _TEXT[settings.kind](settings, unit_records, index_folder)
