"""DNSMOS scores of all clips, and what other thresholds would keep of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from koe.dataflow import stage_making
from koe.schema import Unit
from pipeline.run_dir.reading import Receipts
from pipeline.run_dir.vouched import UnitFiles
from pipeline.stats.distributions import SCORES, Values, quantiles_of
from pipeline.stats.model import ScoreStats, Thresholds, WhatIf

WHAT_IF_OVRL = (2.0, 2.5, 3.0, 3.5)
_COLUMNS = ["seconds", *SCORES, "windows", "ovrl_error", "scorer"]


class ScoreTally:
    """Scores by source, and clips and seconds above each of `thresholds`."""

    def __init__(self, files: UnitFiles, thresholds: Sequence[float]) -> None:
        self.values = {name: Values() for name in SCORES}
        self._files = files
        self._thresholds = thresholds
        self._scorers: set[str] = set()
        self._configured: set[float] = set()
        self._clips = self._windows = self._units = 0
        self._above = [0] * len(thresholds)
        self._seconds = [0.0] * len(thresholds)
        self._uncertain = [0] * len(thresholds)

    def add(self, unit: Unit, receipts: Receipts) -> None:
        scored, encoded = (receipts.get(stage_making(name)) for name in ("ovrl", "frames"))
        if encoded is not None:
            threshold = encoded.content.get("threshold_ovrl")
            self._configured.update([] if threshold is None else [float(threshold)])
        if scored is None:
            return
        self._units += 1
        for batch in self._files.batches(scored.output, _COLUMNS):
            self._clips += batch.num_rows
            self._windows += int(batch["windows"].to_numpy().sum())
            self._scorers.update(batch["scorer"].unique().to_pylist())
            for name, values in self.values.items():
                values.add(unit.source, batch[name].drop_null().to_numpy())
            self._apply_thresholds(
                *(batch[name].to_numpy() for name in ("ovrl", "ovrl_error", "seconds"))
            )

    def _apply_thresholds(self, ovrl: np.ndarray, error: np.ndarray, seconds: np.ndarray) -> None:
        for place, threshold in enumerate(self._thresholds):
            above = ovrl > threshold
            self._above[place] += int(above.sum())
            self._seconds[place] += float(seconds[above].sum())
            near = (error > 0) & (np.abs(ovrl - threshold) <= error)
            self._uncertain[place] += int(near.sum())

    def scores(self) -> ScoreStats | None:
        """Describe the scores, without those that no clip has; None where no unit was scored."""
        if not self._units:
            return None
        values = {name: found.all() for name, found in self.values.items()}
        quantiles = {name: quantiles_of(found) for name, found in values.items() if len(found)}
        return ScoreStats(self._clips, self._windows, sorted(self._scorers), quantiles)

    def thresholds(self) -> Thresholds:
        """Return the threshold that was applied, and what others would keep of the scored clips."""
        what_if = [
            WhatIf(
                threshold=threshold,
                clips=clips,
                hours=round(seconds / 3600, 4),
                share=round(clips / self._clips, 6) if self._clips else 0.0,
                uncertain=uncertain,
            )
            for threshold, clips, seconds, uncertain in zip(
                self._thresholds, self._above, self._seconds, self._uncertain, strict=True
            )
        ]
        configured = self._configured.copy().pop() if len(self._configured) == 1 else None
        return Thresholds(configured, what_if)
