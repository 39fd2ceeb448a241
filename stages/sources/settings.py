"""The settings of every source of clips and of samples, and what of them decides its records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from koe.schema import SPEECH, TEXT
from stages.sources.fields import SpeechFields


@dataclass(frozen=True)
class Clips:
    """A source of clips."""

    kind: ClassVar[str]

    name: str
    paths: tuple[str, ...]
    fields: SpeechFields
    unit_records: int

    @property
    def modality(self) -> str:
        return SPEECH

    @property
    def content(self) -> dict[str, Any]:
        return {"kind": self.kind, "fields": asdict(self.fields)}


@dataclass(frozen=True)
class ClipsInFiles(Clips):
    """A source whose records may name audio files, relative to `audio_root`."""

    audio_root: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        return super().content | {"audio_root": self.audio_root}


@dataclass(frozen=True)
class TextFiles:
    """A source of instruction samples."""

    kind: ClassVar[str]

    name: str
    paths: tuple[str, ...]
    id_field: str | None
    unit_records: int

    @property
    def modality(self) -> str:
        return TEXT

    @property
    def content(self) -> dict[str, Any]:
        return {"kind": self.kind, "id": self.id_field}
