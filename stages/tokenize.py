"""Tokenize: encoded clips and instruction records become samples in the Orpheus layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa

from koe.errors import BadRecord, ContractError
from koe.last_record import began
from koe.schema import ENCODED, SAMPLE, SPEECH, TEXT, UNIT, Unit, require_schema, units_in
from koe.stage import Exclusions, Outcome, Resources, Transform
from koe.vocabulary import CODEBOOK_SIZE, SLOTS, conversation_ids, drop_repeated_frames, speech_ids
from stages.boundary import attempt_read
from stages.clips import location
from stages.settings import TokenizeConfig, TranscriptsConfig
from stages.sources.base import Record, TextFiles, leaving_out
from stages.sources.checks.notes import Notes
from stages.text.conversation import ends_unanswered, turns
from stages.text.tokenizer import TextEncoder, TextTokenizer
from stages.text.transcripts import TranscriptChecks, speech_prompt

NAME = "tokenize"


@dataclass(frozen=True)
class _Tokenize(ABC):
    """What the stages of both modalities have in common."""

    tokenizer: TextTokenizer
    settings: TokenizeConfig = field(default_factory=TokenizeConfig)

    name: str = field(default=NAME, init=False)
    version: int = field(default=2, init=False)
    output_schema: pa.Schema = field(default=SAMPLE, init=False, repr=False)

    @property
    def resources(self) -> Resources:
        return self.settings.resources

    def open(self) -> Transform:
        return partial(self._transform, encoder=self.tokenizer.open())

    @abstractmethod
    def _transform(self, table: pa.Table, encoder: TextEncoder) -> Outcome: ...


@dataclass(frozen=True)
class TokenizeSpeech(_Tokenize):
    """ENCODED clips to SAMPLE: SOH BOS prompt EOT EOH SOA SOS codes EOS EOA.

    Where the prompt names {speaker}, a clip without a speaker is quarantined. A clip whose
    transcript fails a check is rejected.
    """

    transcripts: TranscriptsConfig = field(default_factory=TranscriptsConfig)

    @property
    def content(self) -> dict[str, Any]:
        checks = self.transcripts.text_content()
        return {
            "modality": SPEECH,
            "tokenizer_sha256": self.tokenizer.sha256,
            "prompt": self.settings.speech_prompt,
            "drop_repeated_frames": self.settings.drop_repeated_frames,
            # only where one is on: without them the samples are those of earlier runs
            **({"transcripts": checks} if checks else {}),
        }

    def _transform(self, table: pa.Table, encoder: TextEncoder) -> Outcome:
        require_schema(table, ENCODED, "the input of stage tokenize")
        clips, all_codes = table.drop_columns("codes").to_pylist(), _lists(table["codes"])
        excluded, samples = Exclusions(NAME), []
        good, prompts = [], []
        checks = TranscriptChecks(self.transcripts)
        for clip, codes in zip(clips, all_codes, strict=True):
            began(clip["id"])
            text = checks.prepared(clip["text"])
            try:
                prompt = speech_prompt(self.settings.speech_prompt, text, clip["speaker"])
            except BadRecord as bad:
                excluded.quarantine(clip["id"], clip["source"], bad, location(clip))
                continue
            if rejection := checks.rejection(text, clip["seconds"]):
                excluded.reject(clip["id"], clip["source"], *rejection, location(clip))
                continue
            prompts.append(prompt)
            good.append((clip, codes))
        for (clip, codes), text_ids in zip(good, _encoded(encoder, prompts), strict=True):
            if isinstance(text_ids, BadRecord):
                excluded.quarantine(clip["id"], clip["source"], text_ids, location(clip))
                continue
            codes = _require_codes(codes, clip["id"])
            if self.settings.drop_repeated_frames:
                codes = drop_repeated_frames(codes)
            ids = speech_ids(text_ids, codes)
            frames = len(codes) // SLOTS
            samples.append(_sample(clip["id"], clip["source"], SPEECH, frames, ids))
        return excluded.outcome(pa.Table.from_pylist(samples, schema=SAMPLE))


@dataclass(frozen=True)
class TokenizeText(_Tokenize):
    """One row of UNIT to SAMPLE: SOH BOS user EOT EOH SOA answer EOT EOA, turn by turn.

    Reads the unit's records from `source`. A record that cannot be read and one that repeats an id
    of its unit are quarantined.
    """

    version: int = field(default=2, init=False)
    source: TextFiles = field(kw_only=True)
    left_out: Mapping[int, BadRecord] = field(default_factory=dict)  # by their place in the unit

    @property
    def content(self) -> dict[str, Any]:
        return {
            "modality": TEXT,
            "tokenizer_sha256": self.tokenizer.sha256,
            "source": self.source.name,
            "layout": self.source.settings.layout,
            "names": self.source.settings.fields.model_dump(exclude={"id"}),
        }

    def leaving_out(self, records: Mapping[int, BadRecord]) -> Self:
        return replace(self, left_out=records)

    def _transform(self, table: pa.Table, encoder: TextEncoder) -> Outcome:
        require_schema(table, UNIT, "the input of stage tokenize")
        if table.num_rows != 1:
            raise ContractError(f"tokenize got {table.num_rows} units", "it takes one at a time")
        (unit,) = units_in(table)
        excluded, samples = Exclusions(NAME), []
        notes = Notes(self.source)
        read = list(self._conversations(unit, excluded, notes))
        texts = [text for _, _, pairs in read for pair in pairs for text in pair]
        encoded = iter(_encoded(encoder, texts))
        for sample_id, place, pairs in read:
            parts = [next(encoded) for pair in pairs for _ in pair]
            if bad := next((part for part in parts if isinstance(part, BadRecord)), None):
                excluded.quarantine(sample_id, unit.source, bad, place)
                continue
            turns_of_ids = [part for part in parts if not isinstance(part, BadRecord)]
            ids = conversation_ids(list(zip(turns_of_ids[::2], turns_of_ids[1::2], strict=True)))
            samples.append(_sample(sample_id, unit.source, TEXT, 0, ids))
        return excluded.outcome(pa.Table.from_pylist(samples, schema=SAMPLE), notes.counts())

    def _conversations(
        self, unit: Unit, excluded: Exclusions, notes: Notes
    ) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
        """Yield (sample id, location, turns) of the good records; the others go to `excluded`."""
        seen: set[str] = set()
        for record in leaving_out(self.source.records_of(unit), self.left_out):
            sample_id = f"{unit.source}/{record.key}"
            began(sample_id)
            pairs = attempt_read("broken_record", self._turns, record, notes, sample_id in seen)
            if isinstance(pairs, BadRecord):
                excluded.quarantine(sample_id, unit.source, pairs, record.location)
                continue
            seen.add(sample_id)
            yield sample_id, record.location, pairs

    def _turns(self, record: Record, notes: Notes, is_repeated: bool) -> list[tuple[str, str]]:
        notes.add(record)
        if record.bad:
            raise record.bad
        settings = self.source.settings
        pairs = turns(record.fields, settings.layout, settings.fields)
        if is_repeated:
            raise BadRecord("duplicate_id", "an earlier record of this unit has the id")
        if ends_unanswered(record.fields, settings.layout, settings.fields):
            notes.add_unanswered()
        return pairs


def _encoded(encoder: TextEncoder, texts: list[str]) -> list[list[int] | BadRecord]:
    """Encode texts at once; one by one where the tokenizer fails, to find the text that it fails at."""
    found = attempt_read("broken_text", encoder.encode, texts)
    if not isinstance(found, BadRecord):
        return list(found)
    each = (attempt_read("broken_text", encoder.encode, [text]) for text in texts)
    return [one if isinstance(one, BadRecord) else one[0] for one in each]


def _sample(id: str, source: str, modality: str, frames: int, ids: np.ndarray) -> dict[str, Any]:
    return dict(zip(SAMPLE.names, (id, source, modality, frames, ids), strict=True))


def _require_codes(codes: np.ndarray, clip_id: str) -> np.ndarray:
    if not len(codes) or len(codes) % SLOTS or int(codes.max()) >= CODEBOOK_SIZE:
        raise ContractError(
            f"clip {clip_id} has {len(codes)} codes up to {codes.max(initial=0)}",
            f"it needs complete frames of {SLOTS} codes below {CODEBOOK_SIZE}",
            "Run encode again with --force encode.",
        )
    return codes


def _lists(column: pa.ChunkedArray) -> Sequence[np.ndarray]:
    """View a list column as one numpy array per row, without copying."""
    views: list[np.ndarray] = []
    for chunk in column.chunks:
        offsets, values = chunk.offsets.to_numpy(), chunk.values.to_numpy()
        views += [values[a:b] for a, b in pairwise(offsets.tolist())]
    return views
