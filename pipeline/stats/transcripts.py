"""What the checks of transcripts, those of a run or others, would reject of the clips as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from koe.dataflow import output_schema
from koe.errors import BadRecord
from koe.repeats import later
from koe.schema import REJECTED, SPEECH, Unit
from pipeline.run_dir.ledger import Receipt
from pipeline.run_dir.reading import Receipts
from pipeline.run_dir.vouched import UnitFiles
from pipeline.stats.distributions import Values, quantiles_of
from pipeline.stats.model import ExcludedRecord, SourceTranscripts, TranscriptStats
from stages.settings import TranscriptsConfig
from stages.text.transcripts import (
    LONG_FOR_SOURCE,
    SHORT_FOR_SOURCE,
    TranscriptChecks,
    rate_bounds,
    speech_prompt,
    unusual_rates,
)

_COLUMNS = ("id", "text", "speaker", "seconds")
_MAX_LISTED = 5  # values of a setting
_MAX_EXAMPLES = 2  # of each source and reason
_WHAT_IF = "what-if"  # the stage of an example that no stage has rejected


class TranscriptTally:
    """Checks the transcripts of all clips that got as far as their units did.

    Those are the clips that encode kept, where it is done: `checks` then decide here as tokenize
    and interleave would. A clip takes 12 bytes.
    """

    def __init__(self, files: UnitFiles, settings: TranscriptsConfig, prompt: str) -> None:
        self._files = files
        self._settings, self._prompt = settings, prompt
        self._checks = TranscriptChecks(settings)
        self._rates = Values()
        self._ids: dict[str, bytearray] = {}  # hashes of the clips that have a rate, int64
        self._clips: Counter[str] = Counter()
        self._rejected: dict[str, Counter[str]] = {}
        self._examples: list[ExcludedRecord] = []

    def add(self, unit: Unit, receipts: Receipts) -> None:
        receipt = _last_of_clips(receipts)
        if unit.modality != SPEECH or receipt is None:
            return
        rates: list[float] = []
        hashes: list[int] = []
        rejected = self._rejected.setdefault(unit.source, Counter())
        for batch in self._files.batches(receipt.output, _COLUMNS):
            self._clips[unit.source] += batch.num_rows
            columns = (batch[name].to_pylist() for name in _COLUMNS)
            for id, text, speaker, seconds in zip(*columns, strict=True):
                text = self._checks.prepared(text)
                if not self._has_prompt(text, speaker):
                    continue
                if found := self._checks.rejection(text, seconds):
                    rejected[found.reason] += 1
                    if rejected[found.reason] <= _MAX_EXAMPLES:
                        self._examples.append(
                            ExcludedRecord(id, unit.source, _WHAT_IF, REJECTED, *found, "")
                        )
                else:
                    rates.append(self._checks.rate(text, seconds))
                    hashes.append(hash(id))
        self._rates.add(unit.source, np.array(rates, np.float32))
        ids = self._ids.setdefault(unit.source, bytearray())
        ids += np.array(hashes, np.int64).tobytes()

    def stats(self) -> TranscriptStats | None:
        """Return what the checks reject, by source; None where nothing was ingested."""
        if not self._clips:
            return None
        return TranscriptStats(
            settings=self._settings.model_dump(mode="json"),
            sources={source: self._of_source(source) for source in self._clips},
            examples=self._examples,
        )

    def _has_prompt(self, text: str, speaker: str | None) -> bool:
        try:
            speech_prompt(self._prompt, text, speaker)
        except BadRecord:
            return False
        return True

    def _of_source(self, source: str) -> SourceTranscripts:
        rates, most = self._rates.of(source), self._settings.max_rate_deviations
        rejected, bounds = self._rejected[source].copy(), None
        if most is not None:
            bounds = rate_bounds(rates, most)
            unusual = unusual_rates(rates, most)
            # interleave quarantines an id that comes again, whatever its rate
            unusual[later(np.frombuffer(self._ids[source], np.int64))] = 0
            rejected[SHORT_FOR_SOURCE] = int((unusual < 0).sum())
            rejected[LONG_FOR_SOURCE] = int((unusual > 0).sum())
        return SourceTranscripts(
            clips=self._clips[source],
            rejected={reason: number for reason, number in sorted(rejected.items()) if number},
            characters_per_second=_quantiles(rates),
            rate_bounds=None if bounds is None else [round(bound, 4) for bound in bounds],
        )


def checks_on(found: TranscriptStats) -> str:
    """List the settings that differ from the defaults, which check nothing; "" for none."""
    defaults = TranscriptsConfig().model_dump(mode="json")
    on = {name: value for name, value in found.settings.items() if value != defaults[name]}
    return ", ".join(
        f"{name} {_listed(value) if isinstance(value, list) else value}"
        for name, value in on.items()
    )


def _listed(values: list[str]) -> str:
    more = len(values) - _MAX_LISTED
    return "; ".join(values[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _quantiles(rates: np.ndarray) -> Mapping[str, float]:
    finite = rates[np.isfinite(rates)]
    return quantiles_of(finite) if len(finite) else {}


def _last_of_clips(receipts: Receipts) -> Receipt | None:
    """Return the receipt of the last stage that still has the transcripts of a unit's clips."""
    found = [r for stage, r in receipts.items() if "text" in output_schema(stage).names]
    return found[-1] if found else None
