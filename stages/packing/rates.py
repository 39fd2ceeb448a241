"""Clips whose speaking rate is unusual for their source, which takes all clips of the source to tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from stages.packing.leaving import Clips, Left
from stages.packing.reasons import LONG, SHORT
from stages.settings import TranscriptsConfig
from stages.text.transcripts import TranscriptChecks, rate_bounds, unusual_rates


def unusual_clips(units: Sequence[Clips], free: np.ndarray, settings: TranscriptsConfig) -> Left:
    """Find the clips of an unusual rate, among those that are `free` to stay, bool [samples].

    Those that are not free still tell what is usual. A sample costs 4 bytes.
    """
    most = settings.max_rate_deviations
    if most is None:
        return Left()
    checks = TranscriptChecks(settings)
    by_source: dict[str, list[tuple[int, np.ndarray]]] = {}
    for unit in units:
        clips = unit.read(["source", "text", "seconds"])
        if clips.num_rows:
            source = clips["source"][0].as_py()  # of all clips of a unit
            by_source.setdefault(source, []).append((unit.begin, _rates(clips, checks)))
    left = Left()
    for source, parts in by_source.items():
        rates = np.concatenate([rates for _, rates in parts])
        bounds = rate_bounds(rates, most)
        if bounds is None:
            continue
        numbers = np.concatenate([begin + np.arange(len(part)) for begin, part in parts])
        found = unusual_rates(rates, most)
        out = (found != 0) & free[numbers]
        codes = np.where(found[out] < 0, SHORT, LONG).astype(np.uint8)
        values = rates[out].astype(np.float64)
        left = left.joined(Left(numbers[out], codes, values, {source: bounds}))
    return left


def _rates(clips: pa.Table, checks: TranscriptChecks) -> np.ndarray:
    columns = zip(clips["text"].to_pylist(), clips["seconds"].to_pylist(), strict=True)
    rates = (checks.rate(checks.prepared(text), seconds) for text, seconds in columns)
    return np.fromiter(rates, np.float32, clips.num_rows)
