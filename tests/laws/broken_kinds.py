"""Every kind of source, with what writes it so that given records are broken."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.sources.base import SourceFiles
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from tests.laws.broken_sets import cut_line, nemo_line, write_beside, write_nemo, write_shar
from tests.laws.broken_sources import (
    Writer,
    compressed,
    write_array,
    write_lines,
    write_pages,
    write_parquet,
    write_tar,
)


@dataclass(frozen=True)
class Kind:
    """A kind of source: `write` breaks the records whose numbers are given.

    `names`: the fields that a record has there.
    """

    write: Writer
    source: dict[str, Any]
    file: str
    names: tuple[str, ...] = ("text", "messages", "x")
    has_audio: bool = True

    def open(self, folder: Path, unit_records: int) -> SourceFiles[Any]:
        values = {"name": "s", "paths": [str(folder / self.file)], **self.source}
        if self.has_audio:
            return speech_source(SpeechSourceConfig(**values), unit_records)
        return text_source(TextSourceConfig(**values), unit_records)


TAR = {"kind": "webdataset"}


JSON = {"kind": "json"}


NEMO = {"kind": "nemo_tarred"}
SHAR, CUTS = {"kind": "shar"}, "cuts.0.jsonl"


KINDS = {
    "ustar": Kind(write_tar(tarfile.USTAR_FORMAT), TAR, "a.tar"),
    "gnu": Kind(write_tar(tarfile.GNU_FORMAT), TAR, "a.tar"),
    "pax": Kind(write_tar(tarfile.PAX_FORMAT), TAR, "a.tar"),
    "joined": Kind(write_tar(tarfile.USTAR_FORMAT, joined=True), TAR, "a.tar"),
    "manifest": Kind(write_lines, {"kind": "manifest"}, "a.jsonl"),
    "nemo_lines": Kind(write_beside(nemo_line, "m.json", "audio_{}.tar", False), NEMO, "m.json"),
    "nemo_tars": Kind(write_beside(nemo_line, "m.json", "audio_{}.tar", True), NEMO, "m.json"),
    "shar_lines": Kind(write_beside(cut_line, CUTS, "recording.0.tar", False), SHAR, CUTS),
    "shar_tars": Kind(write_beside(cut_line, CUTS, "recording.0.tar", True), SHAR, CUTS),
    "parquet": Kind(write_parquet, {"kind": "parquet"}, "a.parquet", ("text",)),
    "lines": Kind(write_lines, {"kind": "jsonl"}, "a.jsonl", has_audio=False),
    "array": Kind(write_array(", "), JSON, "a.json", has_audio=False),
    "array_lines": Kind(write_array(",\n"), JSON, "a.json", has_audio=False),
    "array_pretty": Kind(write_array(",\n  ", indent=2), JSON, "a.json", has_audio=False),
    "pages": Kind(write_pages, {"kind": "parquet"}, "a.parquet", ("text",)),
    "tar.gz": Kind(compressed(write_tar(tarfile.USTAR_FORMAT), "a.tar", ".gz"), TAR, "a.tar.gz"),
    "tar.zst": Kind(compressed(write_tar(tarfile.GNU_FORMAT), "a.tar", ".zst"), TAR, "a.tar.zst"),
    "manifest.gz": Kind(
        compressed(write_lines, "a.jsonl", ".gz"), {"kind": "manifest"}, "a.jsonl.gz"
    ),
    "lines.zst": Kind(
        compressed(write_lines, "a.jsonl", ".zst"),
        {"kind": "jsonl"},
        "a.jsonl.zst",
        has_audio=False,
    ),
    "array.gz": Kind(
        compressed(write_array(",\n"), "a.json", ".gz"), JSON, "a.json.gz", has_audio=False
    ),
    "nemo": Kind(write_nemo, {"kind": "nemo_tarred"}, "manifest_0.json"),
    "shar": Kind(write_shar, {"kind": "shar"}, "cuts.000000.jsonl"),
    "shar.gz": Kind(
        compressed(write_shar, "cuts.000000.jsonl", ".gz"), {"kind": "shar"}, "cuts.000000.jsonl.gz"
    ),
}
