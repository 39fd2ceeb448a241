"""Receipts: each speaks of its own work and input, and counts what its excluded table holds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from koe.errors import ContractError
from koe.fingerprint import sha256_json
from koe.schema import QUARANTINED, REJECTED
from pipeline.run_dir.ledger import Receipt

STALE = "Run `koe run`: what is stale or missing is done again."


def require_receipt(
    receipt: Receipt, stage: str, unit: str, output: str, made_from: str | None = None
) -> None:
    """Prove that a receipt speaks of this stage, unit and output, and of the input it should.

    `made_from`: the fingerprint of the input as it is now; None where only the source files know.
    """
    path = f"{stage}/{unit}.json"
    if made_from is not None and receipt.input_sha256 != made_from:
        raise ContractError(
            f"{path} was made from another input",
            f"it names {receipt.input_sha256[:12]}, the input is {made_from[:12]}",
            STALE,
        )
    excluded = receipt.excluded.path if receipt.excluded else f"{stage}/{unit}.excluded.arrow"
    says = (receipt.stage, receipt.unit, receipt.output.path, excluded)
    if says != (stage, unit, output, f"{stage}/{unit}.excluded.arrow"):
        raise ContractError(
            f"{path} is the receipt of other work",
            f"it speaks of {', '.join(says)}",
            "Remove it and run `koe run`: the unit is done again.",
        )
    content = {"stage": receipt.stage, "version": receipt.version, "content": receipt.content}
    if sha256_json(content) != receipt.content_sha256:
        raise ContractError(
            f"{path} names other settings than it fingerprints",
            f"they hash to {sha256_json(content)[:12]}, not {receipt.content_sha256[:12]}",
            "Remove it and run `koe run`: the unit is done again.",
        )


def setting(receipt: Receipt, name: str) -> Any:
    """Return a setting that the receipt must name."""
    if name not in receipt.content:
        raise ContractError(
            f"{receipt.stage}/{receipt.unit}.json does not name {name}",
            "another version of koe wrote it",
            STALE,
        )
    return receipt.content[name]


def reasons_of(excluded: pa.Table | pa.RecordBatch) -> Counter[tuple[str, str]]:
    """Count excluded rows by outcome and reason."""
    pairs = zip(excluded["outcome"].to_pylist(), excluded["reason"].to_pylist(), strict=True)
    return Counter(pairs)


def require_counts(receipt: Receipt, records: int, found: Counter[tuple[str, str]]) -> None:
    """Prove that in = kept + rejected + quarantined, and that the excluded table says the same.

    `records`: what came in; `found`: the rows of the excluded table, by outcome and reason.
    """
    where = f"{receipt.stage}/{receipt.unit}.json"
    remedy = f"Remove {where} and run `koe run`: the unit is done again."
    ended = receipt.kept + sum(receipt.rejected.values()) + sum(receipt.quarantined.values())
    if not receipt.records_in == ended == records:
        raise ContractError(
            f"the record counts of {where} do not add up",
            f"{records} came in; it counts {receipt.records_in} in and {ended} out",
            remedy,
        )
    counted = Counter(
        {
            (outcome, reason): number
            for outcome, counts in (
                (REJECTED, receipt.rejected),
                (QUARANTINED, receipt.quarantined),
            )
            for reason, number in counts.items()
        }
    )
    for outcome, reason in sorted({*counted, *found}):
        said, held = counted[outcome, reason], found[outcome, reason]
        if said != held:
            raise ContractError(
                f"the record counts of {where} do not add up",
                f"it counts {said} {outcome} for {reason}, its excluded table holds {held}",
                remedy,
            )
