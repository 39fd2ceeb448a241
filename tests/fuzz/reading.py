"""Reads a source as a run does: planned, checked, ingested or tokenized, decoded; and judges it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from koe.errors import BadRecord, ConfigError
from koe.schema import Unit, unit_table
from koe.stage import Outcome, Stage, check_outcome
from stages.boundary import DEFECT
from stages.clips import load_clips
from stages.ingest import IngestStage
from stages.sources.base import SpeechFiles, TextFiles
from stages.sources.checks.first_records import check_first_records
from stages.text.tokenizer import SPLIT_PATTERN, TextTokenizer
from stages.tokenize import TokenizeText
from tests.fuzz.mutations import Files

AUDIO_HZ = 16_000
REFUSED, READ = "refused", "read"
MOST = 0.5  # of the records of a sound source; some are bad on purpose


@cache
def tokenizer() -> TextTokenizer:
    """Make a tokenizer of single bytes, which splits texts as that of Llama 3 does."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return TextTokenizer("0" * 64, backend.to_str())


def write(folder: Path, files: Files) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read(source: SpeechFiles | TextFiles, is_sound: bool = False) -> str:
    """Read a source: each record that was planned must be kept, or quarantined with a reason.

    Of one that `is_sound` all but the records that are bad on purpose are kept, and decoded. Returns whether it was read, or refused before any work by an error that names it. Whatever else
    happens is raised.
    """
    try:
        units = list(source.units())
        check_first_records(source, units)
    except ConfigError as refusal:
        if f"source {source.name}" not in str(refusal):
            raise AssertionError("a refusal that does not name the source") from refusal
        return REFUSED
    is_speech = isinstance(source, SpeechFiles)
    stage = IngestStage((source,)) if is_speech else TokenizeText(tokenizer(), source=source)
    kept = 0
    for unit in units:
        outcome = _outcome(stage, unit)
        kept += _decode(outcome.kept) if is_speech else outcome.kept.num_rows
    if is_sound:
        assert kept >= MOST * sum(unit.records for unit in units) > 0
    return READ


def _outcome(stage: Stage, unit: Unit) -> Outcome:
    outcome = check_outcome(stage, unit.records, stage.open()(unit_table([unit])))
    for table in (outcome.kept, outcome.quarantined):
        table.validate(full=True)  # that texts are UTF-8, too
    for row in outcome.quarantined.select(["reason", "detail"]).to_pylist():
        assert all(row.values()), f"a record without a reason: {row}"
        assert DEFECT not in row["detail"], row["detail"]
    return outcome


def _decode(clips: pa.Table) -> int:
    """Decode what ingest kept; return of how many clips that gave audio."""
    found = list(load_clips(clips, AUDIO_HZ))
    assert len(found) == clips.num_rows
    sound = 0
    for audio, seconds in zip(found, clips["seconds"].to_pylist(), strict=True):
        if isinstance(audio, BadRecord):
            assert DEFECT not in audio.detail, audio.detail
            continue
        assert audio.dtype == np.float32
        assert np.isfinite(audio).all()
        assert abs(len(audio) - seconds * AUDIO_HZ) <= 1
        sound += 1
    return sound


def read_in(
    folder: Path,
    files: Files,
    make: Callable[[Path], SpeechFiles | TextFiles],
    is_sound: bool = False,
) -> str:
    """Write files into a new folder and read them as `read` does; the folder is removed."""
    folder.mkdir(parents=True)
    try:
        write(folder, files)
        return read(make(folder), is_sound)
    finally:
        shutil.rmtree(folder)
