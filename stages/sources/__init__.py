"""Readers of speech and instruction sources: they plan slices of files and read one slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from koe.errors import ConfigError
from stages.sources.base import Source
from stages.sources.fields import SpeechFields
from stages.sources.folder import FolderSource
from stages.sources.instructions import JsonArraySource, JsonLinesSource
from stages.sources.manifest import ManifestSource
from stages.sources.parquet import ParquetSpeechSource, ParquetTextSource
from stages.sources.webdataset import WebDatasetSource


class SpeechSource(Source, Protocol):
    """A source of speech; `content` is what decides its records beside the files themselves."""

    @property
    def fields(self) -> SpeechFields: ...
    @property
    def content(self) -> dict[str, Any]: ...


def speech_source(
    *,
    name: str,
    kind: str,
    paths: Sequence[str],
    audio_root: str | None,
    fields: Mapping[str, str | None],
    unit_records: int,
) -> SpeechSource:
    """Make a speech source of `kind` webdataset, parquet, manifest or folder.

    `fields` maps the roles of `SpeechFields` to field names; roles left out keep their defaults.

    Raises: ConfigError for another kind or role, or an `audio_root` that tars have no use for.
    """
    files, roles = tuple(paths), _roles(name, fields)
    if kind == "webdataset":
        if audio_root is not None:
            raise ConfigError(
                f"source {name} cannot have an audio_root",
                "the audio of a webdataset lies in its tars",
                "Remove the key.",
            )
        return WebDatasetSource(name, files, roles, unit_records)
    kinds = {"parquet": ParquetSpeechSource, "manifest": ManifestSource, "folder": FolderSource}
    if kind not in kinds:
        raise ConfigError(f"source {name} has the unknown kind {kind!r}")
    return kinds[kind](name, files, roles, unit_records, audio_root)


def _roles(name: str, fields: Mapping[str, str | None]) -> SpeechFields:
    unknown = set(fields) - set(SpeechFields.__dataclass_fields__)
    if unknown or not fields.get("text", "text"):
        raise ConfigError(f"source {name} maps unknown fields {sorted(unknown)}, or no text")
    return SpeechFields(**dict(fields))  # pyright: ignore[reportArgumentType]


def text_source(
    *,
    name: str,
    kind: str,
    paths: Sequence[str],
    fields: Mapping[str, str | None],
    unit_records: int,
) -> Source:
    """Make an instruction source of `kind` jsonl, json or parquet.

    Only the `id` of `fields` matters here: the tokenize stage turns raw fields into turns.

    Raises: ConfigError for another kind.
    """
    kinds = {"jsonl": JsonLinesSource, "json": JsonArraySource, "parquet": ParquetTextSource}
    if kind not in kinds:
        raise ConfigError(f"source {name} has the unknown kind {kind!r}")
    return kinds[kind](name, tuple(paths), fields.get("id"), unit_records)
