"""Interleave, first half: samples are shuffled, packed into rows, and the rows put in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pipeline.errors import ConfigError
from stages.mix import Ratio, mix
from stages.pack import Pieces, count_rows, cut_speech, cut_text, pack, row_sums

# Why a sample has no place; 0 has one.
DUPLICATE, OVERLONG, EXHAUSTED = 1, 2, 3

_MOST_SKIPPED = 32


@dataclass(frozen=True)
class InterleaveSettings:
    """All that decides the order; fields as in `pipeline.yaml`."""

    max_row_tokens: int = 2048
    ratio: Ratio = "natural"
    overlong_speech: Literal["drop", "split"] = "drop"
    overlong_text: Literal["drop", "split"] = "split"
    shard_megabytes: float = 256
    validation_share: float = 0.005
    seed: int = 0


class Catalog(NamedTuple):
    """All samples in plan order, as arrays [n]."""

    unit: np.ndarray  # place in the sorted list of units
    unit_index: np.ndarray  # index of the unit in the plan
    row: np.ndarray  # in the unit's table
    is_text: np.ndarray
    lengths: np.ndarray
    num_frames: np.ndarray


class Placed(NamedTuple):
    """Pieces in their rows, sorted by row; arrays [pieces]."""

    row: np.ndarray
    sample: np.ndarray  # in the catalog
    part: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    is_cut: np.ndarray  # bool: one of several pieces of its sample


class Queue:
    """The shuffled samples of one modality, cut into pieces; a prefix of them will be placed."""

    def __init__(
        self, catalog: Catalog, fate: np.ndarray, settings: InterleaveSettings, text: bool
    ) -> None:
        self.capacity = settings.max_row_tokens
        self.rng = np.random.Generator(
            np.random.PCG64([settings.seed & (2**64 - 1), 0 if text else 1])
        )
        self._catalog, self._is_text = catalog, text
        samples = np.flatnonzero((catalog.is_text == text) & (fate == 0))
        policy = settings.overlong_text if text else settings.overlong_speech
        overlong = catalog.lengths[samples] > self.capacity
        if policy == "split":
            overlong &= self._cut(samples)[1]
        fate[samples[overlong]] = OVERLONG
        samples = samples[~overlong]
        self._line_up(samples[self.rng.permutation(len(samples))])
        self.num_samples = len(samples)  # of the prefix

    def num_pieces(self, num_samples: int) -> int:
        return int(self.piece_ends[num_samples - 1]) if num_samples else 0

    def rows_of(self, num_samples: int) -> int:
        return count_rows(self.lengths[: self.num_pieces(num_samples)], self.capacity)

    def num_rows(self) -> int:
        return self.rows_of(self.num_samples)

    def shrink(self, num_rows: int) -> None:
        """Shorten the prefix to `num_rows` rows, or a little less where no prefix has as many.

        A sample of many pieces at its end may need more rows than are left: it goes to the back
        of the queue, and those behind it have their turn.
        """
        self._shorten(num_rows)
        for _ in range(_MOST_SKIPPED):
            if self.num_samples == len(self.samples) or self.num_rows() == num_rows:
                return
            blocking = self.samples[self.num_samples]
            self._line_up(np.append(np.delete(self.samples, self.num_samples), blocking))
            self._shorten(num_rows)

    def left_out(self) -> np.ndarray:
        """Samples (catalog) behind the prefix."""
        return self.samples[self.num_samples :]

    def _shorten(self, num_rows: int) -> None:
        low, high = 0, len(self.samples)
        while low < high:
            middle = (low + high + 1) // 2
            if self.rows_of(middle) <= num_rows:
                low = middle
            else:
                high = middle - 1
        self.num_samples = low

    def _line_up(self, samples: np.ndarray) -> None:
        self.samples = samples
        self.pieces = self._cut(samples)[0]
        self.lengths = self.pieces.stop - self.pieces.start
        self.num_parts = np.bincount(self.pieces.sample, minlength=len(samples))
        self.piece_ends = np.cumsum(self.num_parts)

    def _cut(self, samples: np.ndarray) -> tuple[Pieces, np.ndarray]:
        """Pieces of `samples`, and which of them cannot be cut."""
        lengths = self._catalog.lengths[samples]
        if self._is_text:
            return cut_text(lengths, self.capacity), np.zeros(len(samples), bool)
        return cut_speech(lengths, self._catalog.num_frames[samples], self.capacity)


def fit_to_ratio(queues: list[Queue], settings: InterleaveSettings) -> np.ndarray:
    """Shorten both queues until the ratio uses all their rows. Returns is_text bool [rows].

    Whole samples are left out before packing, not rows after it: a row left out would tear the
    samples that have pieces in other rows.
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


def lay_rows(
    queues: list[Queue], is_text: np.ndarray, settings: InterleaveSettings
) -> tuple[Placed, int]:
    """Pack both queues and give their rows places in the sequence, which has `rows` rows."""
    parts, loosest = [], []
    for queue, wanted in zip(queues, (True, False), strict=True):
        num_pieces = queue.num_pieces(queue.num_samples)
        rows = pack(queue.lengths[:num_pieces], queue.capacity)
        num_rows = len(rows.offsets) - 1
        places = np.flatnonzero(is_text == wanted)[queue.rng.permutation(num_rows)]
        pieces = Pieces(*(array[:num_pieces][rows.items] for array in queue.pieces))
        parts.append(
            Placed(
                row=np.repeat(places, np.diff(rows.offsets)),
                sample=queue.samples[pieces.sample],
                part=pieces.part,
                start=pieces.start,
                stop=pieces.stop,
                is_cut=queue.num_parts[pieces.sample] > 1,
            )
        )
        sums = row_sums(rows, queue.lengths[:num_pieces])
        if num_rows:
            least = int(np.argmin(sums))
            loosest.append((int(places[least]), int(sums[least])))
    placed = Placed(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    num_rows = len(is_text)
    if len(loosest) == 2 and sum(tokens for _, tokens in loosest) <= settings.max_row_tokens:
        placed = _merge_rows(placed, *(row for row, _ in loosest))
        num_rows -= 1
    by_row = np.argsort(placed.row, kind="stable")
    return Placed(*(array[by_row] for array in placed)), num_rows


def _merge_rows(placed: Placed, one: int, other: int) -> Placed:
    """Move the earlier of two rows into the later: the one row that holds both modalities."""
    earlier, later = sorted((one, other))
    row = np.where(placed.row == earlier, later, placed.row)
    return placed._replace(row=row - (row > earlier))
