"""What every source offers: slices of its files (units), and the records of one slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from koe.schema import SPEECH, TEXT, Unit
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig


@dataclass(frozen=True)
class Record:
    """One record of a slice: its raw fields, or the reason why it has none.

    `key` is unique within the source unless the source itself repeats an id. `audio_*` say
    where a speech record's audio lies (see `koe.schema.CLIP`). `reason` and `detail` are set
    when the record could not be read (broken JSON line, tar member outside its archive).
    """

    key: str
    location: str
    fields: dict[str, Any]
    audio_kind: str = ""
    audio_path: str = ""
    audio_member: str = ""
    audio_offset: int = 0
    audio_bytes: int = 0
    reason: str = ""
    detail: str = ""


# Returns the units of a file that was planned before, by its path and stamp; None for any other.
Known = Callable[[str, str], Sequence[Unit] | None]


def scan_all(path: str, stamp: str) -> None:
    """Know no file, so that every file is scanned."""


class Source(Protocol):
    """A named set of files of one kind. Frozen and picklable."""

    @property
    def name(self) -> str: ...
    @property
    def modality(self) -> str: ...

    def units(self, known: Known = scan_all) -> Iterator[Unit]:
        """Plan the slices of all files, in a fixed order; files that are `known` are not read.

        Raises: ConfigError when a path matches nothing.
        """
        ...

    def read(self, unit: Unit) -> Iterator[Record]:
        """Yield the records of one slice: exactly `unit.records` of them."""
        ...


@dataclass(frozen=True)
class SpeechFiles(Source):
    """What the readers of speech sources have in common."""

    settings: SpeechSourceConfig
    unit_records: int  # how many records a unit holds at most

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def modality(self) -> str:
        return SPEECH


@dataclass(frozen=True)
class TextFiles(Source):
    """What the readers of instruction sources have in common."""

    settings: TextSourceConfig
    unit_records: int  # how many records a unit holds at most

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def modality(self) -> str:
        return TEXT
