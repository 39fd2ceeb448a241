"""Samples that leave because of what their clips hold, and how interleave reads those clips again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from stages.settings import DuplicatesConfig, InterleaveSettings

# Reads columns of the clips (ENCODED) of a unit: one row per sample of the unit, in their order.
ReadClips = Callable[[list[str]], pa.Table]


@dataclass(frozen=True)
class Clips:
    """The clips behind the samples of a unit, which begin at place `begin` among all samples."""

    begin: int
    read: ReadClips


@dataclass(frozen=True)
class Left:
    """The samples that leave; `numbers` are their places among all samples, ascending.

    `values`: the place of the earlier sample that stays in its stead, or the characters per second.
    `bounds`: those that are usual, by source.
    """

    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    codes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    values: np.ndarray = field(default_factory=lambda: np.empty(0))  # float64, exact to 2^53
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)

    def value_of(self, number: int) -> float:
        return float(self.values[np.searchsorted(self.numbers, number)])

    def joined(self, other: Left) -> Left:
        """Put two of them together; no sample is in both."""
        numbers = np.concatenate([self.numbers, other.numbers])
        order = np.argsort(numbers)
        return Left(
            numbers[order],
            np.concatenate([self.codes, other.codes])[order],
            np.concatenate([self.values, other.values])[order],
            self.bounds | other.bounds,
        )


def wants_clips(settings: InterleaveSettings) -> bool:
    """Tell whether the settings ask for what only the clips tell."""
    drops_none = settings.duplicates == DuplicatesConfig()
    return settings.transcripts.max_rate_deviations is not None or not drops_none
