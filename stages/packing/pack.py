"""Packing: samples into rows of bounded length, and the cutting of samples over that length."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

from koe.errors import ContractError
from koe.vocabulary import SLOTS

_TAIL_TOKENS = 2  # end_of_speech end_of_ai
_MIN_HEAD_TOKENS = 6  # all of a speech sample's marks before its first frame
_CHUNK = 1 << 20  # samples or rows handled at once: limits the memory beside the result


class Rows(NamedTuple):
    """Packed rows: row i holds the samples `items[offsets[i] : offsets[i + 1]]`."""

    offsets: np.ndarray  # int64 [rows + 1]
    items: np.ndarray  # uint32 [samples], a permutation


class Pieces(NamedTuple):
    """Token ranges of samples; a sample that was not cut is one piece."""

    sample: np.ndarray  # int64 [pieces], ascending
    part: np.ndarray  # int32 [pieces], 0 is the first of its sample
    start: np.ndarray  # int32 [pieces]
    stop: np.ndarray  # int32 [pieces]


def pack(lengths: np.ndarray, capacity: int) -> Rows:
    """Pack samples of `lengths` (tokens, [n]) into rows of at most `capacity` tokens.

    Exactly best-fit decreasing: each sample, longest first, goes to the fullest row that still has
    room. Rows are laid out on the histogram of lengths, so that n matters only for moving indexes.
    Samples of equal length fill their places in the order given.

    Raises: ContractError for a length outside 1..capacity.
    """
    lengths = np.asarray(lengths)
    counts = _histogram(lengths, capacity)
    plan = _best_fit(counts, capacity)
    longer = len(lengths) - np.cumsum(counts)
    by_length = _by_length(lengths, longer, capacity)
    cursor = longer.tolist()  # per length: the place in by_length of its next sample
    items = np.empty(len(lengths), np.uint32)
    widths, heights, position = [], [], 0
    for num_rows, chain in plan:
        contents = _unchain(chain)
        width = sum(number for _, number in contents)
        block = items[position : position + num_rows * width].reshape(num_rows, width)
        column = 0
        for length, number in contents:
            begin, taken = cursor[length], num_rows * number
            block[:, column : column + number] = by_length[begin : begin + taken].reshape(
                num_rows, number
            )
            cursor[length] += taken
            column += number
        position += num_rows * width
        widths.append(width)
        heights.append(num_rows)
    offsets = np.zeros(sum(heights) + 1, np.int64)
    np.cumsum(np.repeat(np.array(widths, np.int64), heights), out=offsets[1:])
    return Rows(offsets, items)


def count_rows(lengths: np.ndarray, capacity: int) -> int:
    """Count the rows that `pack` would make; the cost hardly depends on the number of samples."""
    plan = _best_fit(_histogram(np.asarray(lengths), capacity), capacity)
    return sum(num_rows for num_rows, _ in plan)


def row_sums(rows: Rows, values: np.ndarray) -> np.ndarray:
    """Sum `values` (of each sample, [n]) over each row, int64 [rows]."""
    sums = np.empty(len(rows.offsets) - 1, np.int64)
    for begin in range(0, len(sums), _CHUNK):
        offsets = rows.offsets[begin : begin + _CHUNK + 1]
        members = values[rows.items[offsets[0] : offsets[-1]]]
        sums[begin : begin + _CHUNK] = np.add.reduceat(
            members, offsets[:-1] - offsets[0], dtype=np.int64
        )
    return sums


def ranges(begin: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Concatenate the ranges from `begin[i]` to `begin[i] + number[i]`, int64 [sum of number]."""
    before = np.cumsum(number) - number
    return np.repeat(begin - before, number) + np.arange(int(np.sum(number)))


def cut_text(lengths: np.ndarray, capacity: int) -> Pieces:
    """Cut samples of `lengths` (tokens, [n]) into pieces of at most `capacity` tokens."""
    lengths = np.asarray(lengths, np.int64)
    sample, part = _parts(-(-lengths // capacity))
    start = part * capacity
    return _pieces(sample, part, start, np.minimum(start + capacity, lengths[sample]))


def cut_speech(
    lengths: np.ndarray, num_frames: np.ndarray, capacity: int
) -> tuple[Pieces, np.ndarray]:
    """Cut speech samples between whole frames into pieces of at most `capacity` tokens.

    `lengths` and `num_frames`: [n]. A sample ends with its frames of 7 tokens, end_of_speech and
    end_of_ai; both end tokens stay with the last frame, the text with the first.
    Returns the pieces, and marks the samples whose text leaves no room for a frame, bool [n]: these
    have no piece. Raises: ContractError when a sample is too short for its frames.
    """
    lengths = np.asarray(lengths, np.int64)
    frames = np.asarray(num_frames, np.int64)
    require_frames(lengths, frames)
    head = lengths - _TAIL_TOKENS - SLOTS * frames  # up to and with start_of_speech
    overlong = lengths > capacity
    first = np.minimum((capacity - head) // SLOTS, frames - 1)  # frames of the first piece
    uncut = overlong & (first < 1)
    each = (capacity - _TAIL_TOKENS) // SLOTS  # frames of any other, the last included
    number = np.where(overlong, 1 - (first - frames) // each, 1)
    number[uncut] = 0
    sample, part = _parts(number)
    later = head[sample] + SLOTS * (first[sample] + (part - 1) * each)
    start = np.where(part == 0, 0, later)
    stop = np.where(part == number[sample] - 1, lengths[sample], later + SLOTS * each)
    first_stop = head[sample] + SLOTS * first[sample]
    stop = np.where((part == 0) & (number[sample] > 1), first_stop, stop)
    return _pieces(sample, part, start, stop), uncut


def require_frames(lengths: np.ndarray, num_frames: np.ndarray) -> None:
    """Raise ContractError where a speech sample is shorter than its frames and marks."""
    if (lengths < _MIN_HEAD_TOKENS + SLOTS * num_frames + _TAIL_TOKENS).any():
        raise ContractError("a speech sample has fewer tokens than its frames need")


def _parts(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sample of each piece, and the piece's index in it; both [pieces]."""
    sample = np.repeat(np.arange(len(number)), number)
    before = np.cumsum(number) - number
    return sample, np.arange(len(sample)) - before[sample]


def _pieces(sample, part, start, stop) -> Pieces:
    return Pieces(sample, part.astype(np.int32), start.astype(np.int32), stop.astype(np.int32))


def _histogram(lengths: np.ndarray, capacity: int) -> np.ndarray:
    if len(lengths) and (int(lengths.min()) < 1 or int(lengths.max()) > capacity):
        raise ContractError(
            f"samples of {lengths.min()}..{lengths.max()} tokens cannot be packed",
            f"a row has room for 1..{capacity}",
        )
    counts = np.zeros(capacity + 1, np.int64)
    for begin in range(0, len(lengths), _CHUNK):  # bincount makes an int64 copy
        counts += np.bincount(lengths[begin : begin + _CHUNK], minlength=capacity + 1)
    return counts


def _by_length(lengths: np.ndarray, longer: np.ndarray, capacity: int) -> np.ndarray:
    """Sort the samples, longest first and equal ones in their order, uint32 [n].

    `longer[length]` counts the samples that are longer. It works in chunks, because one argsort of
    all takes 16 bytes per sample beside its result.
    """
    by_length = np.empty(len(lengths), np.uint32)
    place = longer.copy()  # per length: that of its next sample
    for begin in range(0, len(lengths), _CHUNK):
        part = lengths[begin : begin + _CHUNK]
        # 16-bit keys sort by radix, 8 times faster than 64-bit ones
        keys = (capacity - part).astype(np.uint16 if capacity < 2**16 else np.int64)
        counts = np.bincount(part, minlength=capacity + 1)
        present = np.flatnonzero(counts)[::-1]
        by_length[ranges(place[present], counts[present])] = begin + np.argsort(keys, kind="stable")
        place += counts
    return by_length


# What equal rows hold: (length, how many samples of it, what they held before).
_Chain = tuple[int, int, "_Chain"] | None


def _best_fit(counts: np.ndarray, capacity: int) -> list[tuple[int, _Chain]]:
    """Lay out rows for `counts[length]` samples: [(number of equal rows, contents)].

    Samples of one length fill the fullest row with room until it has none, so all equal rows (a
    class) are filled in one step. Every length makes at most three new classes, and a class at least
    halves its room whenever it is filled: a few steps per length and class.
    """
    room_left: list[int] = []  # of the open classes, ascending
    classes: dict[int, list[tuple[int, _Chain]]] = {}

    def open_class(room: int, num_rows: int, chain: _Chain) -> None:
        if room not in classes:
            classes[room] = []
            insort(room_left, room)
        classes[room].append((num_rows, chain))

    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            place = bisect_left(room_left, length)
            if place < len(room_left):
                room = room_left[place]
                num_rows, chain = classes[room].pop()
                if not classes[room]:
                    del classes[room], room_left[place]
            else:  # no open row has room: new ones, as many as it takes
                room, num_rows, chain = capacity, left, None
            each = room // length
            filled = min(num_rows, left // each)
            if filled:
                open_class(room - each * length, filled, (length, each, chain))
            left -= filled * each
            num_rows -= filled
            if num_rows and left:  # fewer than `each` remain: one row takes them all
                open_class(room - left * length, 1, (length, left, chain))
                num_rows, left = num_rows - 1, 0
            if num_rows and chain is not None:
                open_class(room, num_rows, chain)
    return [group for room in room_left for group in classes[room]]


def _unchain(chain: _Chain) -> list[tuple[int, int]]:
    contents = []
    while chain is not None:
        length, number, chain = chain
        contents.append((length, number))
    return contents[::-1]
