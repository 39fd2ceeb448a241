"""The clips behind the samples of a run, and what an order's settings say of those that leave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from koe.dataflow import INTERLEAVE, last_stage_with, output_path, receipt_path
from koe.errors import ContractError
from koe.schema import SPEECH
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.stats.accounts import clips_of_samples
from pipeline.verify.lists import first
from pipeline.verify.receipts import STALE, contradiction
from pipeline.verify.samples import SampleTable

Settings = TypeVar("Settings", bound=BaseModel)


def settings_of(receipt: Receipt, name: str, model: type[Settings]) -> Settings:
    """Return a section that a receipt holds only where it differs from the defaults.

    Raises: ContractError for what this version of koe does not know.
    """
    try:
        return model(**receipt.content.get(name, {}))
    except ValidationError as error:
        raise ContractError(
            f"{receipt_path(receipt.stage, receipt.unit)} names settings that are not known",
            f"{error.error_count()} of {name} cannot be read: another version of koe wrote it",
            STALE,
        ) from error


def clips_by_unit(
    ledger: Ledger, samples: SampleTable, columns: list[str]
) -> Iterator[tuple[int, pa.Table]]:
    """Yield each unit of speech, by its place in the plan, with columns of its samples' clips."""
    for unit, modality in enumerate(samples.modalities):
        if modality == SPEECH:
            yield unit, clips_of_unit(ledger, samples, unit, columns)


def clips_of_unit(ledger: Ledger, samples: SampleTable, unit: int, columns: list[str]) -> pa.Table:
    """Read columns of the clips of a unit of speech, in the order of its samples."""
    name = samples.units[unit]
    clips, made = (output_path(last_stage_with(c), name) for c in ("codes", "input_ids"))
    return clips_of_samples(ledger.storage, clips, made, columns)


def require_none(samples: SampleTable, outcome: int, why: str) -> None:
    """Prove that no sample has an outcome that the settings do not allow."""
    if (number := first(samples.outcome == outcome)) is not None:
        raise contradiction(INTERLEAVE, f"{samples.name(number)} is left out", why)
