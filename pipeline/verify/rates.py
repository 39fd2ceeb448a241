"""Clips that interleave left out because their speaking rate is unusual for their source."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from koe.dataflow import INTERLEAVE
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.verify.clips import clips_by_unit, require_none, settings_of
from pipeline.verify.lists import first
from pipeline.verify.receipts import contradiction
from pipeline.verify.samples import DUPLICATE, LONG, OPEN, SHORT, SampleTable
from stages.settings import TranscriptsConfig
from stages.text.transcripts import TranscriptChecks, unusual_rates


def prove_rates(order: Receipt, ledger: Ledger, samples: SampleTable) -> None:
    """Prove that clips of an unusual rate left, and no others for it. Holds 14 bytes per sample.

    Raises: ContractError.
    """
    settings = settings_of(order, "transcripts", TranscriptsConfig)
    most = settings.max_rate_deviations
    if most is None:
        for outcome in (SHORT, LONG):
            require_none(samples, outcome, "transcripts.max_rate_deviations is null")
        return
    checks = TranscriptChecks(settings)
    rates: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    units: defaultdict[str, list[int]] = defaultdict(list)
    for unit, clips in clips_by_unit(ledger, samples, ["text", "seconds"]):
        pairs = zip(clips["text"].to_pylist(), clips["seconds"].to_pylist(), strict=True)
        found = [checks.rate(checks.prepared(text), seconds) for text, seconds in pairs]
        rates[samples.sources[unit]].append(np.array(found, np.float32))
        units[samples.sources[unit]].append(unit)
    due = np.full(len(samples), OPEN, np.uint8)
    for source, parts in rates.items():
        judged = unusual_rates(np.concatenate(parts), most)
        ends = np.cumsum([len(part) for part in parts])[:-1]
        for unit, part in zip(units[source], np.split(judged, ends), strict=True):
            due[samples.bounds[unit] : samples.bounds[unit + 1]] = np.choose(
                part + 1, [SHORT, OPEN, LONG]
            )
    due[samples.outcome == DUPLICATE] = OPEN
    said = np.where(np.isin(samples.outcome, (SHORT, LONG)), samples.outcome, np.uint8(OPEN))
    if (number := first(said != due)) is not None:
        usual = due[number] == OPEN
        what = (
            f"{samples.name(number)} {'is left out' if usual else 'is not left out for its rate'}"
        )
        why = f"its characters per second are {'usual' if usual else 'unusual'} for its source"
        raise contradiction(INTERLEAVE, what, why)
