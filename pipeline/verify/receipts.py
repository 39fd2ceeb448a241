"""Receipts: each describes its own work and input, and counts what its excluded table holds."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pyarrow as pa

from koe.dataflow import excluded_path, receipt_path
from koe.errors import ContractError
from koe.fingerprint import sha256_json
from koe.schema import QUARANTINED, REJECTED
from pipeline.run_dir.ledger import Receipt

STALE = "Run `koe run`: what is stale or missing is done again."


def contradiction(stage: str, what: str, why: str) -> ContractError:
    """Return an error whose remedy is to run the stage again."""
    return ContractError(what, why, f"Run `koe run --force {stage}`.")


def require_receipt(
    receipt: Receipt, stage: str, unit: str, output: str, made_from: str | None = None
) -> None:
    """Prove that a receipt is that of this stage, unit and output, and of the input it should be.

    `made_from`: the fingerprint of the input as it is now; None where only the source files tell.
    """
    path = receipt_path(stage, unit)
    if made_from is not None and receipt.input_sha256 != made_from:
        raise ContractError(
            f"{path} was made from another input",
            f"it names {receipt.input_sha256[:12]}, the input is {made_from[:12]}",
            STALE,
        )
    expected = (stage, unit, output, excluded_path(stage, unit))
    excluded = receipt.excluded.path if receipt.excluded else expected[-1]
    found = (receipt.stage, receipt.unit, receipt.output.path, excluded)
    if found != expected:
        raise ContractError(
            f"{path} is the receipt of other work", f"it is about {', '.join(found)}", _redo(path)
        )
    content = {"stage": receipt.stage, "version": receipt.version, "content": receipt.content}
    if sha256_json(content) != receipt.content_sha256:
        raise ContractError(
            f"{path} names other settings than it fingerprints",
            f"they hash to {sha256_json(content)[:12]}, not {receipt.content_sha256[:12]}",
            _redo(path),
        )


def setting(receipt: Receipt, name: str) -> Any:
    """Return a setting that the receipt must name."""
    if name not in receipt.content:
        what = f"{receipt_path(receipt.stage, receipt.unit)} does not name {name}"
        raise ContractError(what, "another version of koe wrote it", STALE)
    return receipt.content[name]


def agree(said: float, found: float) -> bool:
    """Tell whether a receipt's sum is the one found; receipts hold seconds to the millisecond."""
    return math.isclose(said, found, rel_tol=1e-9, abs_tol=2e-3)


def reasons_of(excluded: pa.Table | pa.RecordBatch) -> Counter[tuple[str, str]]:
    """Count excluded rows by outcome and reason."""
    pairs = zip(excluded["outcome"].to_pylist(), excluded["reason"].to_pylist(), strict=True)
    return Counter(pairs)


def require_counts(receipt: Receipt, records: int, found: Counter[tuple[str, str]]) -> None:
    """Prove that in = kept + rejected + quarantined, and that the excluded table says the same.

    `records`: what came in; `found`: the rows of the excluded table, by outcome and reason.
    """
    path = receipt_path(receipt.stage, receipt.unit)
    what = f"the record counts of {path} do not add up"
    ended = receipt.kept + sum(receipt.rejected.values()) + sum(receipt.quarantined.values())
    if not receipt.records_in == ended == records:
        why = f"{records} came in; it counts {receipt.records_in} in and {ended} out"
        raise ContractError(what, why, _redo(path))
    counted = Counter({(REJECTED, reason): n for reason, n in receipt.rejected.items()})
    counted.update({(QUARANTINED, reason): n for reason, n in receipt.quarantined.items()})
    for outcome, reason in sorted({*counted, *found}):
        said, held = counted[outcome, reason], found[outcome, reason]
        if said != held:
            why = f"it counts {said} {outcome} for {reason}, its excluded table holds {held}"
            raise ContractError(what, why, _redo(path))


def _redo(path: str) -> str:
    return f"Remove {path} and run `koe run`: the unit is done again."
