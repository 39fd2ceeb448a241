"""Shards of the stability experiment: real text, and codes of a source whose entropy is known.

The small scale cuts the vocabulary down and keeps koe's layout of documents. Its text has a
byte-level BPE of its own, trained on the same text, so that no token is left out or merged. Speech
is synthetic at every scale: no trained codec weights are needed, and the lowest possible loss is
known (`CodeSource.entropy`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import ipc

import training.model.llama
from benchmarks.stability_damage import (
    DAMAGED,
    OTHER_CLIP,
    SHUFFLED_SLOTS,
    SPEECH_DAMAGE,
    TEXT_DAMAGE,
    Document,
    damaged_codes,
    damaged_text,
    with_shuffled_slots,
)
from benchmarks.stability_text import Encode, Record
from koe.schema import ROW, SCHEMA_VERSION, SPEECH, TEXT
from koe.vocabulary import (
    CODEBOOK_SIZE,
    END_OF_TEXT,
    FIRST_AUDIO,
    NUM_BASE,
    NUM_EMBEDDINGS,
    SLOTS,
    START_OF_TEXT,
    conversation_ids,
    speech_ids,
)

_FOLDED_CONTROLS = 16  # rows between text and audio when ids are folded; 11 are used
_VALIDATION_ROWS = 64
_SUCCESSORS = 16  # codes that may follow a code
_CODE_SEED = 1
_VOICES = "abcdefgh"


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the experiment: those of Orpheus, or folded to `num_text` rows and fewer codes per slot."""

    num_text: int
    num_codes: int

    @property
    def is_complete(self) -> bool:
        return self.num_codes == CODEBOOK_SIZE

    @property
    def num_embeddings(self) -> int:
        if self.is_complete:
            return NUM_EMBEDDINGS
        return self.num_text + _FOLDED_CONTROLS + SLOTS * self.num_codes

    def fold(self, ids: np.ndarray) -> np.ndarray:
        """Map Orpheus ids to those of the experiment."""
        if self.is_complete:
            return ids.astype(np.int32)
        slot, code = np.divmod(ids - FIRST_AUDIO, CODEBOOK_SIZE)
        audio = self.num_text + _FOLDED_CONTROLS + slot * self.num_codes + code
        control = self.num_text + 2 + ids - NUM_BASE
        for place, of_llama in enumerate((START_OF_TEXT, END_OF_TEXT)):
            control[ids == of_llama] = self.num_text + place
        folded = np.where(ids >= START_OF_TEXT, control, ids)
        return np.where(ids >= FIRST_AUDIO, audio, folded).astype(np.int32)

    @contextmanager
    def in_trainer(self) -> Iterator[None]:
        """Make `training.model.llama.build_model` extend the base to this number of rows."""
        before = training.model.llama.NUM_EMBEDDINGS
        training.model.llama.NUM_EMBEDDINGS = self.num_embeddings
        try:
            yield
        finally:
            training.model.llama.NUM_EMBEDDINGS = before


class CodeSource:
    """A Markov source of SNAC codes: each code depends on the one before it, its slot and the voice.

    The j-th of 16 successors has a probability in proportion to 1 / (j + 1).
    """

    def __init__(self, num_codes: int, voices: int = 1) -> None:
        rng = np.random.default_rng(_CODE_SEED)
        self._num_codes, self.voices = num_codes, voices
        shape = (voices, SLOTS, num_codes, _SUCCESSORS)
        self._next = rng.integers(0, num_codes, shape, dtype=np.uint16)
        weights = 1 / np.arange(1, _SUCCESSORS + 1)
        self._probabilities = weights / weights.sum()

    @property
    def entropy(self) -> float:
        """Nats per code; no model can have a lower mean loss on codes (equal successors aside)."""
        return float(-(self._probabilities * np.log(self._probabilities)).sum())

    def codes(self, rng: np.random.Generator, num_frames: int, voice: int = 0) -> np.ndarray:
        """Draw uint16 [7 num_frames] in Orpheus' order."""
        which = rng.choice(_SUCCESSORS, num_frames * SLOTS, p=self._probabilities)
        codes = np.empty(num_frames * SLOTS, np.uint16)
        code = int(rng.integers(self._num_codes))
        for place, successor in enumerate(which):
            code = int(self._next[voice, place % SLOTS, code, successor])
            codes[place] = code
        return codes


class Piece(NamedTuple):
    """A document of a row, or a part of one."""

    ids: np.ndarray
    id: str
    part: int
    modality: str


@dataclass(frozen=True)
class Corpus:
    """Endless documents of both modalities, determined by the seed.

    `damaged_share` of them are damaged, and keep their place: all others are the same as without.
    """

    vocabulary: Vocabulary
    records: list[Record]
    encode: Encode
    source: CodeSource
    mean_frames: int
    damaged_share: float = 0.0

    def plain_text(self, seed: int) -> Iterator[Document]:
        """Yield texts without any layout, as a base model's corpus has them."""
        for record in self._shuffled(seed):
            for text in (record.user, record.answer):
                yield Document(np.array(self.encode(text), np.int32))

    def text(self, seed: int) -> Iterator[Document]:
        damage = self._damage(seed, TEXT_DAMAGE)
        for record in self._shuffled(seed):
            found = next(damage)
            texts = (record.user, damaged_text(record.answer) if found else record.answer)
            user, answer = map(self.encode, texts)
            yield Document(self.vocabulary.fold(conversation_ids([(user, answer)])), found)

    def speech(self, seed: int) -> Iterator[Document]:
        rng, damage = np.random.default_rng([seed, 1]), self._damage(seed + 1, SPEECH_DAMAGE)
        for record in self._shuffled(seed + 1):
            found = next(damage)
            frames = max(2, int(rng.lognormal(math.log(self.mean_frames), 0.5)))
            voice = int(rng.integers(self.source.voices)) if self.source.voices > 1 else 0
            name = f"{_VOICES[voice]}: " if self.source.voices > 1 else ""
            heard = (voice + 1) % self.source.voices if found == OTHER_CLIP else voice
            codes = damaged_codes(self.source.codes(rng, frames, heard), found)
            ids = speech_ids(self.encode(name + record.answer[:24]), codes)
            if found == SHUFFLED_SLOTS:
                ids = with_shuffled_slots(ids)
            yield Document(self.vocabulary.fold(ids), found)

    def _damage(self, seed: int, kinds: Sequence[str]) -> Iterator[str]:
        rng = np.random.default_rng([seed, 2])
        while True:
            is_damaged, kind = rng.random() < self.damaged_share, int(rng.integers(len(kinds)))
            yield kinds[kind] if is_damaged else ""

    def _shuffled(self, seed: int) -> Iterator[Record]:
        rng = np.random.default_rng([seed, 0])
        while True:
            for place in rng.permutation(len(self.records)):
                record = self.records[place]
                if record.user and record.answer:
                    yield record


class _Cutter:
    """Cuts a stream of documents into pieces; what is left of a document is its next part."""

    def __init__(self, documents: Iterator[Document], modality: str) -> None:
        self._documents, self.modality = documents, modality
        self._left, self._part, self._number, self._id = np.zeros(0, np.int32), 0, -1, ""

    def take(self, num_tokens: int) -> list[Piece]:
        """Return pieces of documents with `num_tokens` in total."""
        pieces = []
        while num_tokens:
            if not len(self._left):
                document = next(self._documents)
                self._left, self._part, self._number = document.ids, 0, self._number + 1
                self._id = f"{self.modality}/{self._number}"
                self._id += f"{DAMAGED}{document.damage}" if document.damage else ""
            piece, self._left = self._left[:num_tokens], self._left[num_tokens:]
            pieces.append(Piece(piece, self._id, self._part, self.modality))
            self._part += 1
            num_tokens -= len(piece)
        return pieces


def write_shards(
    folder: Path, corpus: Corpus, *, rows: int, row_tokens: int, block: int, short: int, seed: int
) -> Path:
    """Write train rows of `row_tokens` and 64 mixed validation rows of `short` tokens.

    `block`: this many rows of text alternate with as many of speech, which mixes at batch level; 0:
    one half of each row is text and the other speech. Shards that exist already are left alone.
    """
    if (folder / "index.json").exists():
        return folder
    text, speech = (
        _Cutter(documents, modality)
        for documents, modality in ((corpus.text(seed), TEXT), (corpus.speech(seed), SPEECH))
    )
    train = []
    for row in range(rows):
        if block:
            train.append((text, speech)[row // block % 2].take(row_tokens))
        else:
            train.append([*text.take(row_tokens // 2), *speech.take(row_tokens // 2)])
    corpus = replace(corpus, damaged_share=0.0)
    held_out = 999_983  # one validation split for all folders
    text, speech = _Cutter(corpus.text(held_out), TEXT), _Cutter(corpus.speech(held_out), SPEECH)
    validation = [
        [*text.take(short // 2), *speech.take(short // 2)] for _ in range(_VALIDATION_ROWS)
    ]
    return _write(folder, {"train": train, "validation": validation}, row_tokens)


def write_text_shards(folder: Path, corpus: Corpus, *, rows: int, row_tokens: int) -> Path:
    """Write rows of plain text for a base model."""
    if (folder / "index.json").exists():
        return folder
    cutter = _Cutter(corpus.plain_text(7), TEXT)
    return _write(folder, {"train": [cutter.take(row_tokens) for _ in range(rows)]}, row_tokens)


def _write(folder: Path, splits: dict[str, list[Any]], row_tokens: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for split, rows in splits.items():
        name = f"{split}-00000.arrow"
        table = pa.Table.from_pylist([_row(pieces) for pieces in rows], schema=ROW)
        with ipc.new_file(str(folder / name), ROW) as writer:
            writer.write_table(table, max_chunksize=256)
        entries.append(
            {
                "path": name,
                "split": split,
                "rows": table.num_rows,
                "tokens": sum(len(ids) for ids in table["input_ids"]),
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            }
        )
    index = {"schema_version": SCHEMA_VERSION, "max_row_tokens": row_tokens, "shards": entries}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _row(pieces: list[Piece]) -> dict[str, Any]:
    modalities = [piece.modality for piece in pieces]
    return {
        "input_ids": np.concatenate([piece.ids for piece in pieces]),
        "document_lengths": [len(piece.ids) for piece in pieces],
        "document_sources": modalities,
        "document_ids": [piece.id for piece in pieces],
        "document_modalities": modalities,
        "document_units": modalities,
        "document_parts": [piece.part for piece in pieces],
    }
