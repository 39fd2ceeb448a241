"""The order of the modalities: which row of a shard holds text and which speech."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from koe.errors import ContractError

# Shares of text and speech at places of the run (0 start, 1 end), in rows.
Ratio = Literal["natural"] | Sequence[tuple[float, Mapping[str, float]]]


def mix(num_text_rows: int, num_speech_rows: int, ratio: Ratio) -> tuple[np.ndarray, int, int]:
    """Order rows of the two modalities by the schedule, as many as it allows.

    The share of text is interpolated linearly between the places of the schedule, and no stretch
    of rows is more than one row away from it. Returns (is_text bool [T], text rows left over,
    speech rows left over); "natural" spreads all rows evenly and leaves none.
    """
    if num_text_rows < 0 or num_speech_rows < 0:
        raise ContractError(f"cannot mix {num_text_rows} and {num_speech_rows} rows")
    if ratio == "natural":
        return _spread(num_text_rows, num_speech_rows), 0, 0
    schedule = _Schedule(ratio)
    num_rows = _most_rows(schedule, num_text_rows, num_speech_rows)
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
        places = [float(place) for place, _ in points]
        if not places or places[0] != 0.0 or places != sorted(places) or places[-1] > 1.0:
            raise ContractError(
                f"the places {places} of the ratio are no schedule",
                "they must start at 0.0 and rise to at most 1.0",
            )
        shares = [_text_share(parts) for _, parts in points]
        self._places = np.array([*places, 1.0])
        self._shares = np.array([*shares, shares[-1]])
        means = (self._shares[1:] + self._shares[:-1]) / 2
        self._integral = np.concatenate([[0.0], np.cumsum(means * np.diff(self._places))])
        self.share_of_all = float(self._integral[-1])

    def text_of(self, num_rows: int) -> int:
        """Text rows among `num_rows`."""
        return int(np.floor(num_rows * self.share_of_all + 0.5))

    def text_before(self, num_rows: int) -> np.ndarray:
        """Text rows before each row, int64 [num_rows + 1]: the rounded integral of the share."""
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
        # A share of exactly 0 or 1 may round to a step of -1 or 2: forbid both, from the end
        # backwards, so that the total stays what `text_of` says.
        index = np.arange(num_rows + 1)
        counts = np.minimum.accumulate(counts[::-1])[::-1]
        return np.maximum.accumulate((counts - index)[::-1])[::-1] + index


def _text_share(parts: Mapping[str, float]) -> float:
    text, speech = float(parts.get("text", 0)), float(parts.get("speech", 0))
    if min(text, speech) < 0 or text + speech <= 0:
        raise ContractError(
            f"the parts {dict(parts)} are no ratio", "they must not be negative nor all zero"
        )
    return text / (text + speech)


def _most_rows(schedule: _Schedule, num_text: int, num_speech: int) -> int:
    """Find the largest number of rows whose needs are met; both needs grow with it."""
    low, high = 0, num_text + num_speech
    while low < high:
        middle = (low + high + 1) // 2
        text = schedule.text_of(middle)
        if text <= num_text and middle - text <= num_speech:
            low = middle
        else:
            high = middle - 1
    return low
