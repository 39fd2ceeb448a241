"""A small sound source that is damaged, whatever its kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.sources.base import SpeechFiles, TextFiles
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from tests.fuzz.mutations import Files, Tape, damaged

Pack = Callable[[Files], dict[str, bytes]]
UNIT_RECORDS = 3


def plain(files: Files) -> dict[str, bytes]:
    return dict(files)


@dataclass(frozen=True)
class Reader:
    """A source of one kind: the files that are damaged, and those beside them that stay whole.

    `pack` makes what lies on the disk of the files; the tape says whether they are damaged
    before or after. `settings` are those of the source, whose paths are relative to its folder.
    """

    make: Callable[[], Files]
    settings: Mapping[str, Any]
    is_text: bool = False
    pack: Pack = plain
    beside: Callable[[], Files] = field(default=dict)

    @cached_property
    def sound(self) -> Files:
        return self.make()

    @cached_property
    def whole(self) -> Files:
        return self.beside()

    def source(self, folder: Path) -> SpeechFiles | TextFiles:
        paths = [f"{folder}/{name}" for name in self.settings["paths"]]
        values = {**self.settings, "name": "s", "paths": paths}
        if "transcripts" in values:
            values["transcripts"] = f"{folder}/{values['transcripts']}"
        if self.is_text:
            return text_source(TextSourceConfig.model_validate(values), UNIT_RECORDS)
        return speech_source(SpeechSourceConfig.model_validate(values), UNIT_RECORDS)

    def files(self, data: bytes) -> dict[str, bytes]:
        """Make the files of a source that is damaged as the bytes of a tape say."""
        tape = Tape(data)
        if self.pack is plain or tape.below(2):
            return {**damaged(self.pack(self.sound), tape), **self.whole}
        return {**self.pack(damaged(self.sound, tape)), **self.whole}


def lines(*records: Any) -> bytes:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()
