"""How long clips and samples are: seconds, characters, characters per second, tokens."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from koe.dataflow import last_stage_with, stage_making
from koe.schema import SPEECH, Unit
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.reading import Receipts
from pipeline.stats.distributions import Values


class Lengths:
    """Seconds and characters of all clips ingested, tokens of all samples tokenized."""

    def __init__(self, ledger: Ledger) -> None:
        self._storage = ledger.storage
        self.of_clips = {
            name: Values() for name in ("seconds", "characters", "characters_per_second", "tokens")
        }
        self.of_samples = Values()  # tokens of instruction samples

    def add(self, unit: Unit, receipts: Receipts) -> None:
        clips = receipts.get(stage_making("seconds"))
        samples = receipts.get(last_stage_with("input_ids"))
        if clips is not None:
            self._add_clips(unit.source, clips.output.path)
        if samples is not None:
            tokens = self.of_clips["tokens"] if unit.modality == SPEECH else self.of_samples
            # mapped: the lengths are the list's offsets, its values are never touched
            lists = self._storage.read_table(samples.output.path)["input_ids"]
            for chunk in lists.chunks:
                tokens.add(unit.source, chunk.value_lengths().to_numpy())

    def _add_clips(self, source: str, path: str) -> None:
        with self._storage.open_batches(path, ["text", "seconds"]) as batches:
            for batch in batches:
                seconds = batch["seconds"].to_numpy()
                characters = pc.call_function("utf8_length", [batch["text"]]).to_numpy()
                timed = seconds > 0
                self.of_clips["seconds"].add(source, seconds)
                self.of_clips["characters"].add(source, characters)
                rate = characters[timed] / seconds[timed]
                self.of_clips["characters_per_second"].add(source, np.asarray(rate))
