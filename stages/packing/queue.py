"""Interleave, first half: samples are shuffled and cut, and as many taken as the ratio allows.

All samples of a run are held at once, so every byte per sample counts, here and in
`stages/packing/layout.py`: 21 while duplicates are searched for, then about 28 with the rows
(measured by `benchmarks/driver_memory.py`). What follows from these arrays is made in chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from koe.errors import ConfigError
from stages.packing.mix import largest, mix
from stages.packing.pack import Pieces, count_rows, cut_speech, cut_text
from stages.packing.reasons import OVERLONG
from stages.settings import InterleaveSettings

_MAX_SKIPPED = 32  # samples sent to the back of the queue, see `Queue.shrink`


class Catalog(NamedTuple):
    """All samples in plan order; `bounds[k] : bounds[k + 1]` are those of the k-th unit."""

    bounds: np.ndarray  # int64 [units + 1]
    unit_index: np.ndarray  # int32 [units], index of the unit in the plan
    is_text: np.ndarray  # bool [n]
    lengths: np.ndarray  # int32 [n], tokens
    long_samples: np.ndarray  # uint32, those of more tokens than a row, ascending
    long_frames: np.ndarray  # int32, their frames

    def unit_of(self, samples: np.ndarray) -> np.ndarray:
        """Find the unit of each sample, as an index of `unit_index`."""
        return np.searchsorted(self.bounds, samples, side="right") - 1


class Described(NamedTuple):
    """Where pieces lie in their samples; arrays [pieces], fields as in `koe.schema.ORDER`."""

    sample: np.ndarray  # its index in the catalog
    part: np.ndarray
    start: np.ndarray
    stop: np.ndarray


class Queue:
    """The shuffled samples of one modality, cut into pieces; a prefix of them will be placed.

    Only samples longer than a row are cut. They are few, so pieces are stored for those alone, and
    nothing but the length for all others.
    """

    def __init__(
        self, catalog: Catalog, reasons: np.ndarray, settings: InterleaveSettings, text: bool
    ) -> None:
        """Line up the samples without a reason against them (`reasons`, uint8 [n])."""
        self.capacity = settings.max_row_tokens
        self.rng = np.random.Generator(
            np.random.PCG64([settings.seed & (2**64 - 1), 0 if text else 1])
        )
        self._catalog, self._is_text = catalog, text
        samples = np.flatnonzero((catalog.is_text == text) & (reasons == 0)).astype(np.uint32)
        self.rng.shuffle(samples)
        self._line_up(samples)
        self.num_samples = len(samples)  # of the prefix

    def num_pieces(self, num_samples: int) -> int:
        cut_before = np.searchsorted(self._cut_at, num_samples)
        return num_samples + int(self._extra_before[cut_before])

    def rows_of(self, num_samples: int) -> int:
        return count_rows(self.lengths[: self.num_pieces(num_samples)], self.capacity)

    def num_rows(self) -> int:
        return self.rows_of(self.num_samples)

    def shrink(self, num_rows: int) -> None:
        """Shorten the prefix to `num_rows` rows, or slightly fewer where no prefix has as many.

        A sample of many pieces at the end of the prefix may need more rows than are left: it moves
        to the back of the queue, so that those behind it get their turn.
        """
        self._shorten(num_rows)
        for _ in range(_MAX_SKIPPED):
            if self.num_samples == len(self._samples) or self.num_rows() == num_rows:
                return
            blocking = self._samples[self.num_samples]
            self._line_up(np.append(np.delete(self._samples, self.num_samples), blocking))
            self._shorten(num_rows)

    def left_out(self) -> np.ndarray:
        """Return the samples behind the prefix, as indexes of the catalog."""
        return self._samples[self.num_samples :]

    def is_cut(self) -> np.ndarray:
        """Mark the pieces of samples that were cut, bool [pieces]."""
        cut = np.zeros(len(self.lengths), bool)
        cut[self._first[self._pieces.sample] + self._pieces.part] = True
        return cut

    def describe(self, pieces: np.ndarray) -> Described:
        """Describe pieces, given by their index in this queue."""
        number = np.searchsorted(self._first, pieces, side="right")  # preceding cut samples
        position = pieces - self._extra_before[number]
        start = np.zeros(len(pieces), np.int32)
        part = np.zeros(len(pieces), np.int32)
        if len(self._cut_at):
            last = np.maximum(number, 1) - 1
            into = pieces - self._first[last]
            inside = np.flatnonzero((number > 0) & (into < self._num_parts[last]))
            last, into = last[inside], into[inside]
            position[inside], part[inside] = self._cut_at[last], into
            # the pieces of a cut sample follow those of the cut samples before it: one of each, and
            # their extra pieces
            start[inside] = self._pieces.start[last + self._extra_before[last] + into]
        return Described(self._samples[position], part, start, start + self.lengths[pieces])

    def _shorten(self, num_rows: int) -> None:
        self.num_samples = largest(len(self._samples), lambda n: self.rows_of(n) <= num_rows)

    def _line_up(self, samples: np.ndarray) -> None:
        self._samples = samples
        is_long = np.zeros(len(self._catalog.lengths), bool)
        is_long[self._catalog.long_samples] = True
        self._cut_at = np.flatnonzero(is_long[samples])  # int64 [cut samples], in the queue
        self._pieces = self._cut(samples[self._cut_at])  # of those only
        self._num_parts = np.bincount(self._pieces.sample, minlength=len(self._cut_at))
        self._extra_before = np.concatenate([[0], np.cumsum(self._num_parts - 1)])
        self._first = self._cut_at + self._extra_before[:-1]  # the first piece of each
        dtype = np.uint16 if self.capacity < 2**16 else np.int32
        self.lengths = np.zeros(len(samples) + int(self._extra_before[-1]), dtype)  # of pieces
        whole = ~self.is_cut()
        self.lengths[whole] = self._catalog.lengths[samples[~is_long[samples]]]
        self.lengths[~whole] = self._pieces.stop - self._pieces.start

    def _cut(self, samples: np.ndarray) -> Pieces:
        return _cut(self._catalog, samples, self.capacity, self._is_text)[0]


def _cut(
    catalog: Catalog, samples: np.ndarray, capacity: int, text: bool
) -> tuple[Pieces, np.ndarray]:
    """Return the pieces of samples longer than a row, and bool [samples]: cannot be cut."""
    lengths = catalog.lengths[samples]
    if text:
        return cut_text(lengths, capacity), np.zeros(len(samples), bool)
    place = np.searchsorted(catalog.long_samples, samples)
    return cut_speech(lengths, catalog.long_frames[place], capacity)


def leave_out_overlong(catalog: Catalog, reasons: np.ndarray, settings: InterleaveSettings) -> None:
    """Give the reason OVERLONG to samples that are longer than a row, and may not or cannot be cut."""
    for text, overlong in ((True, settings.overlong_text), (False, settings.overlong_speech)):
        found = catalog.long_samples
        found = found[(catalog.is_text[found] == text) & (reasons[found] == 0)]
        if overlong == "split":
            found = found[_cut(catalog, found, settings.max_row_tokens, text)[1]]
        reasons[found] = OVERLONG


def fit_to_ratio(queues: list[Queue], settings: InterleaveSettings) -> np.ndarray:
    """Shorten both queues until the ratio uses all their rows. Returns is_text, bool [rows].

    Samples are left out before packing, not rows after it: a row left out would leave samples
    incomplete that have pieces in other rows too.
    Raises: ConfigError when no row is left.
    """
    text, speech = queues
    had_rows = text.num_rows(), speech.num_rows()
    num_text, num_speech = had_rows
    while True:
        is_text, text_left, speech_left = mix(num_text, num_speech, settings.ratio)
        if not text_left and not speech_left:
            break
        if text_left:
            text.shrink(num_text - text_left)
        if speech_left:
            speech.shrink(num_speech - speech_left)
        num_text, num_speech = text.num_rows(), speech.num_rows()
    if not len(is_text) and any(had_rows):
        raise ConfigError(
            "interleave.ratio leaves no row at all",
            f"there are {had_rows[0]} rows of text and {had_rows[1]} of speech, too few for it",
            "Set it to natural, or to parts that the sources can give.",
        )
    return is_text
