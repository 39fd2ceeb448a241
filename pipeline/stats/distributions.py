"""Exact quantiles and histograms of millions of values, at 4 bytes per value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow.compute as pc

from koe.dataflow import last_stage_with, stage_making
from koe.schema import SPEECH, Unit
from pipeline.run_dir.ledger import Receipt
from pipeline.run_dir.reading import Receipts
from pipeline.run_dir.vouched import UnitFiles
from pipeline.stats.model import Distribution, Histogram

ALL = "all"  # the key of the values of all sources together
SCORES = ("sig", "bak", "ovrl")
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_SCORE_EDGES = np.linspace(1, 5, 41)  # the scale of P.835, in tenths
_MAX_BINS = 40
_STEPS = (1, 2, 2.5, 5, 10)  # of a histogram, times a power of ten


class Values:
    """Values of one quantity by source, float32."""

    def __init__(self) -> None:
        self._bytes: dict[str, bytearray] = {}

    def add(self, source: str, values: np.ndarray) -> None:
        self._bytes.setdefault(source, bytearray()).extend(values.astype(np.float32).tobytes())

    def of(self, source: str) -> np.ndarray:
        """Return a source's values, float32 [n], not to be written to."""
        return np.frombuffer(self._bytes.get(source, b""), np.float32)

    def all(self) -> np.ndarray:
        """Return a copy of the values of all sources, float32 [n]."""
        parts = [self.of(source) for source in self._bytes]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def sources(self) -> list[str]:
        return [source for source in self._bytes if self._bytes[source]]


class Lengths:
    """Seconds and characters of all clips ingested, tokens of all samples tokenized."""

    def __init__(self, files: UnitFiles) -> None:
        self._files = files
        self.of_clips = {
            name: Values() for name in ("seconds", "characters", "characters_per_second", "tokens")
        }
        self.of_samples = Values()  # tokens of instruction samples

    def add(self, unit: Unit, receipts: Receipts) -> None:
        clips = receipts.get(stage_making("seconds"))
        samples = receipts.get(last_stage_with("input_ids"))
        if clips is not None:
            self._add_clips(unit.source, clips)
        if samples is not None:
            tokens = self.of_clips["tokens"] if unit.modality == SPEECH else self.of_samples
            for batch in self._files.batches(samples.output, ["input_ids"]):
                tokens.add(unit.source, batch["input_ids"].value_lengths().to_numpy())

    def _add_clips(self, source: str, receipt: Receipt) -> None:
        for batch in self._files.batches(receipt.output, ["text", "seconds"]):
            seconds = batch["seconds"].to_numpy()
            characters = pc.call_function("utf8_length", [batch["text"]]).to_numpy()
            timed = seconds > 0
            self.of_clips["seconds"].add(source, seconds)
            self.of_clips["characters"].add(source, characters)
            rate = characters[timed] / seconds[timed]
            self.of_clips["characters_per_second"].add(source, np.asarray(rate))


def distributions(
    of_clips: Mapping[str, Values], tokens_of_samples: Values, sources: Iterable[str]
) -> dict[str, dict[str, Distribution]]:
    """Describe every quantity by source, and that of all sources together under `all`.

    There the tokens of instruction samples are `text_tokens`. The histograms of one quantity
    share their edges, so that sources can be compared.
    """
    found: dict[str, dict[str, Distribution]] = {source: {} for source in sources}
    total: dict[str, Distribution] = {}
    quantities = [(name, name, values) for name, values in of_clips.items()]
    for name, name_in_all, values in [*quantities, ("tokens", "text_tokens", tokens_of_samples)]:
        everything = values.all()
        if not len(everything):
            continue
        edges = _SCORE_EDGES if name in SCORES else _edges(everything)
        for source in values.sources():
            found[source][name] = _describe(values.of(source).copy(), edges)
        total[name_in_all] = _describe(everything, edges)
    return {ALL: total} | found


def quantiles_of(values: np.ndarray) -> dict[str, float]:
    """Return the quantiles of `values` [n > 0], whose order is not kept."""
    marks = np.quantile(values, QUANTILES, overwrite_input=True)
    return {f"p{q * 100:g}": round(float(v), 4) for q, v in zip(QUANTILES, marks, strict=True)}


def _describe(values: np.ndarray, edges: np.ndarray) -> Distribution:
    """Describe values, whose order is not kept.

    The bins at either end also hold what lies beyond them: with even bins up to the last outlier,
    one bin would hold nearly all values.
    """
    counts, _ = np.histogram(values, np.concatenate([[-np.inf], edges[1:-1], [np.inf]]))
    return Distribution(
        count=len(values),
        mean=round(float(values.mean(dtype=np.float64)), 4),
        quantiles=quantiles_of(values),
        histogram=Histogram(edges.round(6).tolist(), counts.tolist()),
    )


def _edges(values: np.ndarray) -> np.ndarray:
    """Choose round edges of even steps that hold all but the outermost thousandths."""
    low, high = np.quantile(values, (0.001, 0.999))
    least = max(float(high - low), 1e-6) / (_MAX_BINS - 1)
    scale = 10.0 ** math.floor(math.log10(least))
    step = next(k * scale for k in _STEPS if k * scale >= least)
    first, last = math.floor(low / step), math.ceil(high / step)
    return step * np.arange(first, max(last, first + 1) + 1)
