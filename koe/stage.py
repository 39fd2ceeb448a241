"""The contract between stages and whatever runs them: tables in, tables out, nothing lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import pyarrow as pa

from koe.errors import BadRecord, ContractError
from koe.printable import shorten
from koe.schema import EXCLUDED, QUARANTINED, REJECTED, require_schema

# A thread decodes and resamples 1,350 seconds of FLAC per second, 360 of Opus; the fastest network
# that was measured on an H200 scores 3,500 (docs/performance.md).
THREADS_PER_GPU = 4


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage needs, and how many workers it may have.

    `workers` None lets the engine choose from the cluster's size. `memory` is in bytes, 0 for any.
    `others` are resources that only some nodes have, by the names that these were started with.
    `shares_gpu`: where there are fewer GPUs than stages that need one, the worker may be given a part of one.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    shares_gpu: bool = False
    workers: int | None = None
    memory: float = 0.0
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """How many threads prepare a worker's clips for its model: one per CPU, and enough for a GPU.

        Those of a GPU have nothing to do once they are ahead of it.
        """
        return max(1, int(self.cpus), math.ceil(THREADS_PER_GPU * self.gpus))

    @property
    def gpu_share(self) -> float:
        """Return the part of a GPU whose memory a worker may plan with: 1 where none is reserved."""
        return min(1.0, self.gpus or 1.0)

    def amounts(self) -> dict[str, float]:
        """Return what one worker needs, by the names that Ray has for it."""
        known = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: amount for name, amount in {**known, **self.others}.items() if amount}


@dataclass(frozen=True)
class Outcome:
    """What became of a unit: `kept` in the stage's output schema, the others in EXCLUDED.

    `notes` are what a user should know of the records read, each with the number of records.
    """

    kept: pa.Table
    rejected: pa.Table
    quarantined: pa.Table
    notes: Mapping[str, int] = field(default_factory=dict)

    def num_records(self) -> int:
        return self.kept.num_rows + self.rejected.num_rows + self.quarantined.num_rows


Transform = Callable[[pa.Table], Outcome]


class Recorded(Protocol):
    """What a receipt records of the work that made an output.

    `content` holds all that decides the output's bytes (settings and model hashes) and nothing
    that does not (worker counts, batch sizes): it is fingerprinted into every receipt.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def content(self) -> dict[str, Any]: ...


class Stage(Recorded, Protocol):
    """A frozen, picklable description of work; `open` binds the model once per worker."""

    @property
    def output_schema(self) -> pa.Schema: ...
    @property
    def resources(self) -> Resources: ...
    def open(self) -> Transform: ...


@runtime_checkable
class SharesGpu(Stage, Protocol):
    """A stage whose workers may have a part of a GPU, and must know which."""

    def with_gpus(self, gpus: float) -> Self: ...


@runtime_checkable
class RunsModel(Stage, Protocol):
    """A stage that runs a model, by one of several engines."""

    @property
    def engine_description(self) -> str:
        """Say which engine runs it; nothing where the stage is set to need no model."""
        ...


@runtime_checkable
class ReadsUnits(Protocol):
    """A stage that reads the records of a unit by itself, out of its source."""

    def leaving_out(self, records: Mapping[int, BadRecord]) -> Self:
        """Return the stage that quarantines these records, by their place in the unit, unopened."""
        ...


_MAX_CHARS = 4096  # of what is said of a record; a value that is wrong may have any length


@dataclass
class Exclusions:
    """Collects the records that a stage does not keep, and hands them out as tables."""

    stage: str
    _rows: list[dict[str, str]] = field(default_factory=list)

    def reject(self, id: str, source: str, reason: str, detail: str, location: str = "") -> None:
        self._add(id, source, self.stage, REJECTED, reason, detail, location)

    def quarantine(self, id: str, source: str, bad: BadRecord, location: str = "") -> None:
        self._add(
            id,
            source,
            self.stage,
            QUARANTINED,
            bad.reason,
            shorten(bad.detail, _MAX_CHARS),
            shorten(location, _MAX_CHARS),
        )

    def _add(self, *values: str) -> None:
        self._rows.append(dict(zip(EXCLUDED.names, values, strict=True)))

    def outcome(self, kept: pa.Table, notes: Mapping[str, int] | None = None) -> Outcome:
        """Return what became of a unit, `kept` and all that was left out."""
        return Outcome(kept, self._table(REJECTED), self._table(QUARANTINED), notes or {})

    def _table(self, outcome: str) -> pa.Table:
        rows = [row for row in self._rows if row["outcome"] == outcome]
        return pa.Table.from_pylist(rows, schema=EXCLUDED)


def check_outcome(stage: Stage, num_input: int, outcome: Outcome) -> Outcome:
    """Assert that a transform kept the schema and lost no record.

    Raises: ContractError when `in = kept + rejected + quarantined` does not hold.
    """
    require_schema(outcome.kept, stage.output_schema, f"the output of stage {stage.name}")
    for excluded in (outcome.rejected, outcome.quarantined):
        require_schema(excluded, EXCLUDED, f"the excluded records of stage {stage.name}")
    if outcome.num_records() != num_input:
        raise ContractError(
            f"stage {stage.name} lost or invented records",
            f"{num_input} came in, but {outcome.kept.num_rows} were kept, "
            f"{outcome.rejected.num_rows} rejected and {outcome.quarantined.num_rows} quarantined",
            "This is a defect in koe, please report it with the unit's name.",
        )
    return outcome
