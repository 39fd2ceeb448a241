"""The order of the modalities: which rows hold text and which hold speech."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stages.settings import Ratio


def mix(num_text_rows: int, num_speech_rows: int, ratio: Ratio) -> tuple[np.ndarray, int, int]:
    """Order rows of the two modalities by the schedule, as many as it allows.

    `ratio` as `InterleaveConfig` accepts it. The share of text is interpolated linearly between
    the places of the schedule, and no stretch of rows deviates from it by more than one row.
    Returns is_text (bool [rows]), and how many rows of text and of speech are left over; the ratio
    "natural" spreads all rows evenly and leaves none.
    """
    if ratio == "natural":
        return _spread(num_text_rows, num_speech_rows), 0, 0
    schedule = _Schedule(ratio)

    def suffices(num_rows: int) -> bool:
        text = schedule.text_of(num_rows)
        return text <= num_text_rows and num_rows - text <= num_speech_rows

    num_rows = largest(num_text_rows + num_speech_rows, suffices)
    is_text = np.diff(schedule.text_before(num_rows)).astype(bool)
    num_text = int(is_text.sum())
    return is_text, num_text_rows - num_text, num_speech_rows - (num_rows - num_text)


def _spread(num_text: int, num_speech: int) -> np.ndarray:
    total = num_text + num_speech
    if not total:
        return np.zeros(0, bool)
    rows = np.arange(total + 1, dtype=np.int64)
    return np.diff((2 * rows * num_text + total) // (2 * total)).astype(bool)


class _Schedule:
    """Text's share as a function of progress, and its integral."""

    def __init__(self, points: Sequence[tuple[float, Mapping[str, float]]]) -> None:
        shares = [_text_share(parts) for _, parts in points]
        self._places = np.array([*(float(place) for place, _ in points), 1.0])
        self._shares = np.array([*shares, shares[-1]])
        means = (self._shares[1:] + self._shares[:-1]) / 2
        self._integral = np.concatenate([[0.0], np.cumsum(means * np.diff(self._places))])
        self.share_of_all = float(self._integral[-1])

    def text_of(self, num_rows: int) -> int:
        """Return how many of `num_rows` rows hold text."""
        return int(np.floor(num_rows * self.share_of_all + 0.5))

    def text_before(self, num_rows: int) -> np.ndarray:
        """Count the text rows before each row, int64 [num_rows + 1]: the share's rounded integral."""
        progress = np.arange(num_rows + 1) / max(num_rows, 1)
        piece = np.searchsorted(self._places, progress, side="right") - 1
        piece = np.clip(piece, 0, len(self._places) - 2)
        into = progress - self._places[piece]
        width = np.diff(self._places)[piece]
        slope = np.divide(
            np.diff(self._shares)[piece], width, out=np.zeros_like(into), where=width > 0
        )
        integral = self._integral[piece] + into * (self._shares[piece] + slope * into / 2)
        counts = np.floor(num_rows * integral + 0.5).astype(np.int64)
        counts[-1] = self.text_of(num_rows)
        # With a share of exactly 0 or 1, rounding may give a step of -1 or 2. Both are corrected
        # from the end backwards, so that the total remains what `text_of` returns.
        index = np.arange(num_rows + 1)
        counts = np.minimum.accumulate(counts[::-1])[::-1]
        return np.maximum.accumulate((counts - index)[::-1])[::-1] + index


def _text_share(parts: Mapping[str, float]) -> float:
    text, speech = float(parts.get("text", 0)), float(parts.get("speech", 0))
    return text / (text + speech)


def largest(most: int, fits: Callable[[int], bool]) -> int:
    """Find the largest number up to `most` that fits, by bisection; 0 when none does."""
    return most - bisect_left(range(most, 0, -1), True, key=fits)
