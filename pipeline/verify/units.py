"""Units through their stages: receipts, record counts, ids and the grammar of what was tokenized."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from koe.dataflow import (
    last_stage_with,
    output_path,
    output_schema,
    receipt_path,
    stage_chain,
    stage_making,
)
from koe.errors import ContractError
from koe.fingerprint import sha256_json
from koe.schema import (
    CLIP,
    EXCLUDED,
    SPEECH,
    Unit,
)
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.plan import Plan
from pipeline.verify import flow, grammar
from pipeline.verify.files import vouched_table
from pipeline.verify.lists import differ, flat, lengths
from pipeline.verify.receipts import STALE, reasons_of, require_counts, require_receipt, setting
from pipeline.verify.samples import SampleTable


@dataclass
class Seen:
    """What was proved about the units, and which codec and tokenizer their receipts name."""

    outputs: int = 0
    excluded: int = 0
    records: int = 0
    encoded: int = 0  # clips with codes
    samples: Counter[str] = field(default_factory=Counter)  # by modality
    codecs: dict[str, tuple[str, dict]] = field(default_factory=dict)  # by fingerprint
    tokenizers: dict[str, str] = field(default_factory=dict)  # SHA-256 to a receipt that names it


def prove_names(plan: Plan) -> None:
    """Prove that no two units have one name and that their sources and modalities are known."""
    paths: dict[str, str] = {}
    for unit in plan.units:
        if unit.unit in paths:
            raise ContractError(
                f"plan.json names two units {unit.unit}",
                f"slices of {paths[unit.unit]} and {unit.path}",
                "Remove plan.json and run `koe run`: the sources are planned anew.",
            )
        if plan.modalities.get(unit.source) != unit.modality:
            raise ContractError(
                f"plan.json gives unit {unit.unit} the modality {unit.modality}",
                f"its source {unit.source} has {plan.modalities.get(unit.source)}",
                "Remove plan.json and run `koe run`: the sources are planned anew.",
            )
        paths[unit.unit] = unit.path


def prove_units(plan: Plan, ledger: Ledger, samples: SampleTable, seen: Seen) -> None:
    """Prove one unit after the other through its stages, and take its samples in.

    Holds the tables of two stages of one unit. Raises: ContractError at the first contradiction.
    """
    for unit in plan.units:
        _prove_unit(unit, ledger, samples, seen)
    samples.close()


def _prove_unit(unit: Unit, ledger: Ledger, samples: SampleTable, seen: Seen) -> None:
    missing = ""
    before: tuple[Receipt, pa.Table] | None = None
    for stage in stage_chain(unit.modality):
        receipt = ledger.receipt(stage, unit.unit)
        if receipt is None:
            missing = missing or stage
            continue
        if missing:
            raise ContractError(
                f"{receipt_path(stage, unit.unit)} vouches for work without its input",
                f"{receipt_path(missing, unit.unit)} is missing or corrupt",
                STALE,
            )
        made_from = before[0].output.sha256 if before else None
        require_receipt(receipt, stage, unit.unit, output_path(stage, unit.unit), made_from)
        before = receipt, _prove_stage(receipt, unit, ledger, before, seen)
    tokenized = (
        before if before and before[0].stage == last_stage_with("input_ids") else (None, None)
    )
    samples.add(*tokenized)


def _prove_stage(
    receipt: Receipt,
    unit: Unit,
    ledger: Ledger,
    before: tuple[Receipt, pa.Table] | None,
    seen: Seen,
) -> pa.Table:
    kept = vouched_table(ledger.storage, receipt.output, output_schema(receipt.stage))
    excluded = EXCLUDED.empty_table()
    if receipt.excluded:
        excluded = vouched_table(ledger.storage, receipt.excluded, EXCLUDED)
    path, remedy = receipt.output.path, f"Run `koe run --force {receipt.stage}`."
    _prove_counts(receipt, before[0].kept if before else unit.num_records, excluded)
    require_same(excluded["stage"], receipt.stage, f"the excluded table of {path}", "stage", remedy)
    for table, where in ((kept, path), (excluded, f"the excluded table of {path}")):
        require_same(table["source"], unit.source, where, "source", remedy)
    flow.prove_measures(kept, receipt.measures, path, remedy)
    earlier = before[1] if before else None
    rows = flow.prove_ids(earlier, kept, excluded, path, remedy)
    if earlier is not None and set(CLIP.names) <= set(kept.column_names):
        flow.prove_carried(earlier, rows, kept, CLIP.names, path, remedy)
    if receipt.stage == stage_making("frames") and earlier is not None:
        _prove_encoded(receipt, earlier, rows, kept, excluded)
        codec = setting(receipt, "codec")
        seen.codecs.setdefault(sha256_json(codec), (receipt_path(receipt.stage, unit.unit), codec))
        seen.encoded += kept.num_rows
    if receipt.stage == stage_making("input_ids"):
        _prove_samples(receipt, unit, kept, earlier, rows)
        sha256 = setting(receipt, "tokenizer_sha256")
        seen.tokenizers.setdefault(sha256, receipt_path(receipt.stage, unit.unit))
        seen.samples[unit.modality] += kept.num_rows
    seen.outputs += 1
    seen.excluded += receipt.excluded is not None
    seen.records += receipt.records_in
    return kept


def _prove_counts(receipt: Receipt, records: int, excluded: pa.Table) -> None:
    require_counts(receipt, records, reasons_of(excluded))
    if receipt.kept != receipt.output.rows:
        raise ContractError(
            f"the record counts of {receipt_path(receipt.stage, receipt.unit)} do not add up",
            f"it counts {receipt.kept} kept, its output has {receipt.output.rows} rows",
            STALE,
        )


def _prove_encoded(
    receipt: Receipt, scored: pa.Table, rows: np.ndarray, kept: pa.Table, excluded: pa.Table
) -> None:
    path, remedy = receipt.output.path, f"Run `koe run --force {receipt.stage}`."
    threshold = setting(receipt, "threshold_ovrl")
    flow.prove_scores_kept(scored, rows, kept, "exact_scores" in receipt.content, path, remedy)
    flow.prove_threshold(scored, kept, excluded, threshold, path, remedy)
    flow.prove_encoded(kept, path, remedy)


def _prove_samples(
    receipt: Receipt, unit: Unit, kept: pa.Table, encoded: pa.Table | None, rows: np.ndarray
) -> None:
    path = receipt.output.path
    remedy = f"Run `koe run --force {receipt.stage}`."
    require_same(kept["modality"], unit.modality, path, "modality", remedy)
    values, sizes = flat(kept["input_ids"]).to_numpy(), lengths(kept["input_ids"])
    frames = kept["frames"].to_numpy().astype(np.int64)
    if unit.modality != SPEECH:
        require_same(kept["frames"], 0, path, "number of frames", remedy)
        grammar.prove_turns(values, sizes, path)
        return
    codes = grammar.speech_codes(values, sizes, frames, path)
    drops = bool(receipt.content.get("drop_repeated_frames", False))
    if encoded is not None:
        flow.prove_codes(encoded, rows, frames, codes, drops, path, remedy)


def require_same(
    column: pa.ChunkedArray, value: str | int, where: str, what: str, remedy: str
) -> None:
    """Prove that all rows hold one value."""
    wrong = differ(column, pa.scalar(value, column.type))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ContractError(
            f"{where} has the {what} {column[row].as_py()!r} in row {row}",
            f"all rows of its unit have {value!r}",
            remedy,
        )
