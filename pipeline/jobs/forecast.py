"""What a run would leave out or repeat, said before its first unit.

Told from the first records of one unit of each source: no audio is decoded and no clip is scored,
so the figures are rough. `koe plan` measures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, cast

import pyarrow as pa

from koe.dataflow import INTERLEAVE, TRAIN
from koe.numbers import count
from koe.schema import SPEECH, TEXT, Unit, unit_table
from koe.vocabulary import CODEC_HZ, FRAME_SAMPLES, SLOTS
from pipeline.config.models import PipelineConfig
from pipeline.jobs.assembly import Assembly
from pipeline.run_dir.plan import Plan
from stages.ingest import IngestStage
from stages.packing.mix import mix
from stages.sources.base import Record, SpeechFiles, TextFiles
from stages.tokenize import TokenizeText

_RECORDS = 64  # are read of a source
_SECONDS = 5.0  # after which no further source is read: it is taken to be like those before it
_MARKS = 7  # tokens of a speech sample beside its text and its codes

_LEFT_OUT = 0.2  # reported above this
_GOOD_EPOCHS = 4  # as at train.max_epochs


@dataclass(frozen=True)
class Forecast:
    """Records, and the rows that their tokens fill, by modality; `unread` says what was not read."""

    records: Mapping[str, int]
    rows: Mapping[str, int]
    unread: tuple[str, ...] = ()


@dataclass
class _Sampled:
    """What was read of a modality: tokens per record of each source, None where it was not read."""

    records: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, float | None] = field(default_factory=dict)

    def total(self) -> float:
        """Return the tokens of all records; sources that were not read are like the others."""
        read = [name for name, tokens in self.tokens.items() if tokens is not None]
        known = sum((self.tokens[name] or 0.0) * self.records[name] for name in read)
        return known * sum(self.records.values()) / max(sum(self.records[n] for n in read), 1)


def forecast(
    assembly: Assembly, plan: Plan, clock: Callable[[], float] = time.monotonic
) -> Forecast:
    """Estimate the rows of each modality, as if every clip passed the threshold."""
    sampled = {SPEECH: _Sampled(), TEXT: _Sampled()}
    unread: list[str] = []
    until = clock() + _SECONDS
    for name, modality in plan.modalities.items():
        units = [unit for unit in plan.units_of(modality, name) if unit.records]
        part = sampled[modality]
        part.records[name] = sum(unit.records for unit in units)
        part.tokens[name] = None
        if not units or clock() > until:
            continue
        try:
            part.tokens[name] = _tokens_per_record(assembly, units[len(units) // 2])
        except Exception as error:  # the run fails on this unit in a moment, and says more of it
            unread.append(f"{name} ({type(error).__name__}: {error})")
    capacity = assembly.config.interleave.max_row_tokens
    return Forecast(
        records={modality: sum(part.records.values()) for modality, part in sampled.items()},
        rows={modality: math.ceil(part.total() / capacity) for modality, part in sampled.items()},
        unread=tuple(unread),
    )


def warnings(config: PipelineConfig, found: Forecast, stages: tuple[str, ...]) -> Iterator[str]:
    """Say what the user would not expect, each with the key to change; nothing where all is well."""
    if INTERLEAVE not in stages:
        return
    rows = found.rows
    is_text, *left = mix(rows[TEXT], rows[SPEECH], config.interleave.ratio)
    for modality, other, rows_left in zip((TEXT, SPEECH), (SPEECH, TEXT), left, strict=True):
        share = rows_left / max(rows[modality], 1)
        if share > _LEFT_OUT:
            yield (
                f"interleave.ratio will leave out roughly {share:.0%} of the {modality} "
                f"({count(share * found.records[modality])} of {count(found.records[modality])} "
                f"records), because it asks for more {other} than there is. "
                "`interleave.ratio: natural` keeps everything."
            )
    train = config.train
    kept = len(is_text) * (1 - config.interleave.validation_share)
    if TRAIN not in stages or not kept:
        return
    epochs = train.max_steps * train.rows_per_step / kept
    if epochs > train.max_epochs:
        good = max(round(_GOOD_EPOCHS * kept / train.rows_per_step), 1)
        steps = "1 step" if good == 1 else f"{count(good)} steps"
        yield (
            f"train.max_steps {count(train.max_steps)} will read the roughly {count(kept)} rows "
            f"{count(float(f'{epochs:.2g}'))} times. A model learns little after the first few "
            f"times: {_GOOD_EPOCHS} times are about {steps}. Lower train.max_steps "
            "(and train.warmup_steps with it), or add data: "
            + _what_follows(train.max_epochs, "many_epochs" in train.allow)
        )


def _what_follows(max_epochs: float, is_allowed: bool) -> str:
    bound = f"more than train.max_epochs {max_epochs:g}"
    return f"it is {bound}." if is_allowed else f"{bound} is refused once the shards are there."


def _tokens_per_record(assembly: Assembly, unit: Unit) -> float:
    """Read the first records of a unit; return their tokens per record."""
    some = replace(unit, records=min(unit.records, _RECORDS))
    table = unit_table([some])
    if unit.modality == TEXT:
        source = cast(TextFiles, _First(assembly.text_sources[unit.source], some.records))
        stage = TokenizeText(assembly.tokenizer, assembly.config.tokenize, source=source)
        samples = stage.open()(table).kept
        return _sum_of(samples["input_ids"]) / some.records
    (source,) = (item for item in assembly.speech_sources if item.name == unit.source)
    first = cast(SpeechFiles, _First(source, some.records))
    clips = IngestStage((first,), assembly.config.ingest).open()(table).kept
    texts = assembly.tokenizer.open().encode(clips["text"].to_pylist())
    frames = sum(math.ceil(s * CODEC_HZ / FRAME_SAMPLES) for s in clips["seconds"].to_pylist())
    tokens = SLOTS * frames + sum(len(ids) + _MARKS for ids in texts)
    return tokens / some.records


def _sum_of(lists: pa.ChunkedArray) -> int:
    return sum(len(chunk.flatten()) for chunk in lists.chunks)


class _First:
    """A source whose units end after their first records."""

    def __init__(self, source: SpeechFiles | TextFiles, records: int) -> None:
        self._source, self._records = source, records

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def records_of(self, unit: Unit) -> Iterator[Record]:
        return islice(self._source.records_of(unit), self._records)
