"""Folders with a table, for tests."""

from __future__ import annotations

from pathlib import Path

from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.stages.records import same_for_all_sizes


def folder(path: Path, **settings):
    return same_for_all_sizes(kind="folder", paths=[str(path)], **settings)


def plan(path: Path, **settings):
    config = {"name": "s", "kind": "folder", "paths": [str(path)], **settings}
    return list(speech_source(SpeechSourceConfig.model_validate(config), 2).units())


def texts(records) -> list[str]:
    return [record.fields["text"] for record in records if not record.bad]
