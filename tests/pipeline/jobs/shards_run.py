"""A run whose samples are stored, up to the step that makes shards of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from koe.schema import EXCLUDED
from koe.stage import Outcome
from pipeline.execution.runner import DONE, SKIPPED, UnitResult, Work, always
from pipeline.jobs.interleave import Shards
from pipeline.jobs.order import OrderWork
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage
from stages.interleave import OrderStage
from stages.settings import InterleaveSettings
from tests.pipeline.jobs.plain_rows import plain_rows
from tests.pipeline.run_dir.test_ledger import Numbers

IDENTITY = {"codec": {"label": "made up"}, "tokenizer": {"name": "made up"}}


class Killed(Exception):
    """The run ended here."""


@dataclass
class ShardsRun:
    """Stores samples, and makes shards of them in this process.

    `done` lists what was done, `kill_at` ends the run before that many more units are done.
    `forwards`: the order in which units are done.
    """

    root: str
    tables: Mapping[str, pa.Table]
    settings: InterleaveSettings
    group_tokens: int = 1 << 26
    forwards: bool = True
    kill_at: int | None = None
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.storage = Storage(self.root)
        self.ledger = Ledger(self.storage)

    @property
    def stage(self) -> OrderStage:
        return OrderStage(self.settings, IDENTITY)

    def store_samples(self) -> None:
        none = EXCLUDED.empty_table()
        for name, table in self.tables.items():
            outcome = Outcome(table, none, none)
            stage = replace(Numbers(), name="tokenize")
            self.ledger.commit(stage, name, "", outcome, records_in=table.num_rows, seconds=0)

    def make(self, force: bool = False) -> list[str]:
        """Make order and shards; return the units that were done for it."""
        self.done = []
        units = tuple(self.tables)
        sources = tuple(name.split("-")[0] for name in units)
        order = OrderWork(self.stage, self.root, units, sources, force)
        assert self._run(order, ["order"], ())
        shards = Shards(self.stage, self.ledger, units, self._run, force, self.group_tokens)
        assert shards.make() is not None
        return self.done

    def _run(self, work: Work, units: Sequence[str], before: Sequence[UnitResult]) -> bool:
        run = work.open()
        for unit in units if self.forwards else reversed(units):
            if self.kill_at is not None and len(self.done) >= self.kill_at:
                raise Killed
            result = run(unit, always)
            assert result.status in (DONE, SKIPPED), result.error
            if result.status == DONE:
                self.done.append(unit)
        return all(result.status == SKIPPED for result in before)

    def files(self) -> dict[str, bytes]:
        """Return the bytes of all shards and of the index."""
        names = self.storage.names("shards")
        return {name: self.storage.read_bytes(f"shards/{name}") for name in names}

    def plain_files(self, shards: Mapping[str, pa.Table]) -> dict[str, bytes]:
        """Return the bytes of the shards (their slices of the order) as the plain way makes them."""
        found, metadata = {}, {"koe": json.dumps(IDENTITY, sort_keys=True)}
        for name, part in shards.items():
            rows = plain_rows(part, self.tables).replace_schema_metadata(metadata)
            self.storage.write_table("plain", rows)
            found[f"{name}.arrow"] = self.storage.read_bytes("plain")
        self.storage.remove("plain")
        return found
