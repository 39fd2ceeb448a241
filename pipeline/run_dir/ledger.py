"""The ledger: one receipt per stage and unit, written after the output it vouches for.

A unit counts as done only while its receipt matches the input, the stage's settings and version,
and the size of the output. Receipts are plain JSON files, so that any disk or object store can hold them.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from koe.dataflow import excluded_path, output_path, receipt_path
from koe.fingerprint import sha256_json
from koe.schema import EXCLUDED
from koe.stage import Outcome, Recorded
from pipeline.run_dir.storage import Output, Storage


class Receipt(BaseModel):
    """Proof that a unit went through a stage, and its closed accounting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    unit: str
    version: int
    input_sha256: str
    content_sha256: str
    content: dict[str, Any]
    output: Output
    excluded: Output | None
    records_in: int
    kept: int
    rejected: dict[str, int]
    quarantined: dict[str, int]
    measures: dict[str, float]
    seconds: float
    notes: dict[str, int] = {}  # what a user should know of the records read, with their number
    node: str = ""  # the machine that did the unit
    segments: list[int] = []  # of a segmented output: where each begins and the last ends, in bytes

    @property
    def output_sha256(self) -> str:
        return self.output.sha256


@dataclass(frozen=True)
class Check:
    """Whether a unit is done; `why` says what a stale receipt disagrees about.

    `found` tells whether a receipt lies there, be it stale or unreadable.
    """

    receipt: Receipt | None
    why: str = ""
    found: bool = True


@dataclass(frozen=True)
class Streamed:
    """An outcome too large for memory: its tables are made while they are written.

    `kept` has `schema`, `excluded` is EXCLUDED; `rejected` and `quarantined` count it by reason.
    `segmented`: the tables of `kept` are for readers who each need only one of them. They are not
    joined, and may have several schemas (see `Storage.write_segments`).
    """

    schema: pa.Schema
    kept: Iterable[pa.Table]
    excluded: Iterable[pa.Table]
    rejected: dict[str, int]
    quarantined: dict[str, int]
    segmented: bool = False
    measured: dict[str, float] = field(default_factory=dict)  # filled while the tables are written


def _receipt(data: bytes | None) -> Receipt | None:
    try:
        return None if data is None else Receipt.model_validate_json(data)
    except ValidationError:
        return None  # written by another version or incomplete: the unit is not done


def content_sha256(stage: Recorded) -> str:
    """Fingerprint everything but the input that decides the output of a stage."""
    return sha256_json({"stage": stage.name, "version": stage.version, "content": stage.content})


@dataclass(frozen=True)
class Ledger:
    storage: Storage

    def receipt(self, stage: str, unit: str) -> Receipt | None:
        """Read a receipt; None where there is none or it is incomplete."""
        return next(self.receipts([(stage, unit)]))

    def receipts(self, of: Iterable[tuple[str, str]]) -> Iterator[Receipt | None]:
        """Yield the receipt of each stage and unit, as `receipt` does, in the order asked for.

        Many are read at a time: one after the other, 60,000 would take half an hour on an object store.
        """
        for data in self.storage.read_many(receipt_path(stage, unit) for stage, unit in of):
            yield _receipt(data)

    def check(self, stage: Recorded, unit: str, input_sha256: str) -> Check:
        """Say whether the unit's output can be used as it is."""
        data = self.storage.find_bytes(receipt_path(stage.name, unit))
        check = self.judge(stage, _receipt(data), input_sha256, self.storage.size)
        return replace(check, found=data is not None)

    def judge(
        self,
        stage: Recorded,
        receipt: Receipt | None,
        input_sha256: str,
        size: Callable[[str], int | None],
    ) -> Check:
        """Say whether a receipt holds, where `size` tells the size of a file that is there."""
        if receipt is None:
            return Check(None)
        if receipt.input_sha256 != input_sha256:
            return Check(None, "its input changed")
        if receipt.version != stage.version:
            return Check(None, f"the stage's version rose to {stage.version}")
        if receipt.content_sha256 != content_sha256(stage):
            changed = sorted(
                key
                for key in {*receipt.content, *stage.content}
                if receipt.content.get(key) != stage.content.get(key)
            )
            return Check(None, f"settings changed: {', '.join(changed) or 'representation'}")
        for output in (receipt.output, receipt.excluded):
            if output and size(output.path) != output.num_bytes:
                return Check(None, f"{output.path} is incomplete or missing")
        return Check(receipt)

    def read(self, receipt: Receipt) -> pa.Table:
        return self.storage.read_table(receipt.output.path)

    def read_excluded(self, receipt: Receipt) -> pa.Table | None:
        return self.storage.read_table(receipt.excluded.path) if receipt.excluded else None

    def forget(self, stage: str, unit: str) -> None:
        """Remove a receipt before its output is replaced, so that it never vouches for another one."""
        self.storage.remove(receipt_path(stage, unit))

    def commit(
        self,
        stage: Recorded,
        unit: str,
        input_sha256: str,
        outcome: Outcome | Streamed,
        *,
        records_in: int,
        seconds: float,
        kept: int | None = None,
        measures: dict[str, float] | None = None,
        found: bool = True,
        confirm: Callable[[], None] = lambda: None,
    ) -> Receipt:
        """Store a unit's outcome: outputs first, then the receipt.

        `kept` is given where the rows of the output are not records (packed shards), and `measures`
        where they are not the sums of its columns. `found` is False where no receipt lies there: then
        nothing is there that would have to be removed first. `confirm` raises where another worker has
        been given the unit: before the output is replaced, and again before the receipt is written.
        """
        confirm()
        if found:
            self.forget(stage.name, unit)
        notes = dict(outcome.notes) if isinstance(outcome, Outcome) else {}
        if isinstance(outcome, Outcome):
            measures = _measures(outcome.kept) if measures is None else measures
            outcome = _streamed(outcome)
        path = output_path(stage.name, unit)
        segments: list[int] = []
        if outcome.segmented:
            output, segments = self.storage.write_segments(path, outcome.kept)
        else:
            output = self.storage.write_tables(path, outcome.schema, outcome.kept)
        path = excluded_path(stage.name, unit)
        if outcome.rejected or outcome.quarantined:
            excluded = self.storage.write_tables(path, EXCLUDED, outcome.excluded)
        else:
            if found:
                self.storage.remove(path)
            excluded = None
        receipt = Receipt(
            stage=stage.name,
            unit=unit,
            version=stage.version,
            input_sha256=input_sha256,
            content_sha256=content_sha256(stage),
            content=stage.content,
            output=output,
            excluded=excluded,
            records_in=records_in,
            kept=output.rows if kept is None else kept,
            rejected=outcome.rejected,
            quarantined=outcome.quarantined,
            measures=(measures or {}) | outcome.measured,
            seconds=round(seconds, 3),
            notes=notes,
            segments=segments,
            node=platform.node(),
        )
        confirm()
        self.storage.write_bytes(
            receipt_path(stage.name, unit), receipt.model_dump_json(indent=1).encode()
        )
        return receipt


def _streamed(outcome: Outcome) -> Streamed:
    return Streamed(
        schema=outcome.kept.schema,
        kept=[outcome.kept],
        excluded=[outcome.rejected, outcome.quarantined],
        rejected=_reasons(outcome.rejected),
        quarantined=_reasons(outcome.quarantined),
    )


def _reasons(excluded: pa.Table) -> dict[str, int]:
    return dict(sorted(Counter(excluded["reason"].to_pylist()).items()))


def _measures(kept: pa.Table) -> dict[str, float]:
    """Sum the quantities that rates and totals are given in: seconds, windows, frames, tokens."""
    sums: dict[str, float] = {}
    for column in ("seconds", "windows", "frames"):
        if column in kept.column_names:
            sums[column] = round(float(sum(kept[column].to_pylist())), 3)
    if "input_ids" in kept.column_names:
        sums["tokens"] = sum(len(chunk.flatten()) for chunk in kept["input_ids"].chunks)
    return sums
