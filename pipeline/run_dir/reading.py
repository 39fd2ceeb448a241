"""Reads what a run directory holds so far: how far each unit came, and the index of the shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from koe.dataflow import INDEX, receipt_path, stage_chain
from koe.errors import ContractError
from koe.schema import Unit
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.plan import Plan

_AGAIN = f"Remove {INDEX} and run `koe run`: it is written again."

Receipts = dict[str, Receipt]  # of one unit, by stage


class Made(Protocol):
    """What tells whether an output was made from the current output of the stage before."""

    @property
    def input_sha256(self) -> str: ...
    @property
    def output_sha256(self) -> str: ...


R = TypeVar("R", bound=Made)


@dataclass(frozen=True)
class UnitHistory(Generic[R]):
    """How far a unit came: its receipts by stage, up to the first stage that is not done.

    `pending` is that stage, empty where all are done. A stage whose
    input has been replaced since is not done either: `replaced_by` names the stage that ran again.
    """

    receipts: dict[str, R]
    pending: str = ""
    replaced_by: str = ""


def trace_history(stages: Iterable[str], receipt_of: Callable[[str], R | None]) -> UnitHistory[R]:
    """Follow a unit from stage to stage. `receipt_of` gives a stage's receipt, None without one."""
    done: dict[str, R] = {}
    before, previous = "", None
    for stage in stages:
        receipt = receipt_of(stage)
        if receipt is None:
            return UnitHistory(done, stage)
        if previous is not None and receipt.input_sha256 != previous.output_sha256:
            return UnitHistory(done, stage, before)
        done[stage] = previous = receipt
        before = stage
    return UnitHistory(done)


def unit_history(ledger: Ledger, modality: str, unit: str) -> UnitHistory[Receipt]:
    """Read how far a unit came."""
    return trace_history(stage_chain(modality), lambda stage: ledger.receipt(stage, unit))


def unit_receipts(plan: Plan, ledger: Ledger) -> Iterator[tuple[Unit, Receipts]]:
    """Yield each unit with its receipts by stage, up to the first stage that is not done.

    Some hundreds are held at a time: those of 15 M clips would take half a gigabyte.
    """
    chains = {modality: stage_chain(modality) for modality in set(plan.modalities.values())}
    read = ledger.receipts((s, unit.unit) for unit in plan.units for s in chains[unit.modality])
    for unit in plan.units:
        found = {stage: next(read) for stage in chains[unit.modality]}
        yield unit, trace_history(chains[unit.modality], found.get).receipts


def unreadable_receipts(ledger: Ledger, pending: Iterable[tuple[str, str]]) -> list[str]:
    """List the receipts that lie there, of stages and units that are not done, and cannot be read.

    Each is damaged, or of another version of koe; its unit counts as not done.
    """
    by_stage: dict[str, list[str]] = {}
    for stage, unit in pending:
        by_stage.setdefault(stage, []).append(unit)
    found = []
    for stage, units in by_stage.items():
        names = set(ledger.storage.names(stage))
        paths = [(receipt_path(stage, unit), unit) for unit in units]
        found += [
            path
            for path, unit in paths
            if path.removeprefix(f"{stage}/") in names and ledger.receipt(stage, unit) is None
        ]
    return found


class _Entry(BaseModel):
    """What everybody who reads an index takes for granted of a shard."""

    model_config = ConfigDict(strict=True)

    path: Annotated[str, Field(pattern=r"^[^/\\]+\.arrow$")]  # lies in the folder of the index
    split: str
    rows: int
    documents: int
    tokens: int
    tokens_by_modality: dict[str, int]
    longest_row_tokens: int
    num_bytes: int
    sha256: str


class _Index(BaseModel):
    model_config = ConfigDict(strict=True)

    max_row_tokens: int
    codec: dict[str, Any]
    shards: list[_Entry]


def read_index(ledger: Ledger) -> dict[str, Any] | None:
    """Return the shard index; None while the shards are not complete.

    Raises: ContractError for a file that is not an index.
    """
    index = stored_index(ledger)
    try:
        if index is not None:
            _Index.model_validate(index)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ContractError(f"{INDEX} is not a shard index", why, _AGAIN) from error
    return index


def stored_index(ledger: Ledger) -> dict[str, Any] | None:
    """Return the shard index as it is stored, for those who prove it; None where there is none.

    Raises: ContractError for a file that lists no shards.
    """
    data = ledger.storage.find_bytes(INDEX)
    if data is None:
        return None
    try:
        index = json.loads(data)
    except ValueError as error:
        raise ContractError(f"{INDEX} is not valid JSON", str(error), _AGAIN) from error
    shards = index.get("shards") if isinstance(index, dict) else None
    if not isinstance(shards, list) or not all(isinstance(entry, dict) for entry in shards):
        raise ContractError(f"{INDEX} is not a shard index", "it lists no shards", _AGAIN)
    return index
