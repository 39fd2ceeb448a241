"""Units through their stages: receipts, record counts, ids and the grammar of what was tokenized."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

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
from koe.schema import CLIP, EXCLUDED, SPEECH, Unit
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.plan import Plan
from pipeline.run_dir.reading import Receipts
from pipeline.run_dir.vouched import UnitFiles
from pipeline.stats import RunTally
from pipeline.verify import flow, grammar
from pipeline.verify.files import vouched_table
from pipeline.verify.flow import StageTables
from pipeline.verify.lists import flat, lengths, places_in
from pipeline.verify.receipts import STALE, reasons_of, require_counts, require_receipt, setting
from pipeline.verify.samples import SampleTable
from pipeline.verify.transcripts import prove_transcripts


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
    """Prove that the units' names are unique, and that their sources and modalities are known."""
    remedy = "Remove plan.json and run `koe run`: the sources are planned anew."
    paths: dict[str, str] = {}
    for unit in plan.units:
        if unit.unit in paths:
            what = f"plan.json names two units {unit.unit}"
            raise ContractError(what, f"slices of {paths[unit.unit]} and {unit.path}", remedy)
        modality = plan.modalities.get(unit.source)
        if modality != unit.modality:
            what = f"plan.json gives unit {unit.unit} the modality {unit.modality}"
            raise ContractError(what, f"its source {unit.source} has {modality}", remedy)
        paths[unit.unit] = unit.path


def prove_units(
    plan: Plan, ledger: Ledger, samples: SampleTable, seen: Seen, tally: RunTally
) -> None:
    """Prove one unit after the other through its stages, take its samples in, and count it in `tally`.

    Holds the files of one unit. Raises: ContractError at the first contradiction.
    """
    chains = {modality: stage_chain(modality) for modality in set(plan.modalities.values())}
    read = ledger.receipts((s, unit.unit) for unit in plan.units for s in chains[unit.modality])
    for unit in plan.units:
        receipts = {stage: next(read) for stage in chains[unit.modality]}
        tally.files.next_unit()
        done = _prove_unit(unit, receipts, samples, seen, tally.files)
        tally.add(unit, done)
    samples.close()


def _prove_unit(
    unit: Unit,
    receipts: dict[str, Receipt | None],
    samples: SampleTable,
    seen: Seen,
    files: UnitFiles,
) -> Receipts:
    """Prove a unit as far as it came; return the receipts up to there."""
    done: Receipts = {}
    clips, before = None, None
    for stage, receipt in receipts.items():
        if receipt is None:
            continue
        missing = next(name for name in receipts if name not in done)
        if missing != stage:
            raise ContractError(
                f"{receipt_path(stage, unit.unit)} vouches for work without its input",
                f"{receipt_path(missing, unit.unit)} is missing or corrupt",
                STALE,
            )
        made_from = before.receipt.output.sha256 if before else None
        require_receipt(receipt, stage, unit.unit, output_path(stage, unit.unit), made_from)
        before = _prove_stage(receipt, unit, files, before, seen)
        clips = before if stage == last_stage_with("seconds") else clips
        done[stage] = receipt
    if before and before.receipt.stage == last_stage_with("input_ids"):
        _take_in(before, clips, samples)
    else:
        samples.add(None, None)
    return done


def _take_in(made: StageTables, clips: StageTables | None, samples: SampleTable) -> None:
    """Take the samples of a unit in, with what is known of their clips."""
    if clips is None:
        samples.add(made.receipt, made.kept)
        return
    rows = places_in(made.kept["id"], clips.kept["id"].combine_chunks())
    seconds = clips.kept["seconds"].to_numpy()[rows]
    samples.add(made.receipt, made.kept, clips.receipt, seconds)


def _prove_stage(
    receipt: Receipt, unit: Unit, files: UnitFiles, before: StageTables | None, seen: Seen
) -> StageTables:
    kept = vouched_table(files, receipt.output, output_schema(receipt.stage))
    excluded = EXCLUDED.empty_table()
    if receipt.excluded:
        excluded = vouched_table(files, receipt.excluded, EXCLUDED)
    made = StageTables(receipt, before.kept if before else None, kept, excluded)
    _prove_counts(made, before.receipt.kept if before else unit.records)
    flow.prove_column(made, "stage", receipt.stage, excluded=True)
    flow.prove_column(made, "source", unit.source)
    flow.prove_column(made, "source", unit.source, excluded=True)
    flow.prove_measures(made)
    rows = flow.prove_ids(made)
    if before and set(CLIP.names) <= set(kept.column_names):
        flow.prove_carried(made, rows, CLIP.names)
    path = receipt_path(receipt.stage, unit.unit)
    if before and receipt.stage == stage_making("frames"):
        flow.prove_scores_kept(made, rows)
        flow.prove_threshold(made)
        flow.prove_encoded(made)
        codec = setting(receipt, "codec")
        seen.codecs.setdefault(sha256_json(codec), (path, codec))
        seen.encoded += kept.num_rows
    if receipt.stage == stage_making("input_ids"):
        _prove_samples(made, rows, unit.modality)
        seen.tokenizers.setdefault(setting(receipt, "tokenizer_sha256"), path)
        seen.samples[unit.modality] += kept.num_rows
    seen.outputs += 1
    seen.excluded += receipt.excluded is not None
    seen.records += receipt.records_in
    return StageTables(receipt, None, kept, excluded)  # without its own input, to hold no more


def _prove_counts(made: StageTables, records: int) -> None:
    receipt = made.receipt
    require_counts(receipt, records, reasons_of(made.excluded))
    if receipt.kept != receipt.output.rows:
        raise ContractError(
            f"the record counts of {receipt_path(receipt.stage, receipt.unit)} do not add up",
            f"it counts {receipt.kept} kept, its output has {receipt.output.rows} rows",
            STALE,
        )


def _prove_samples(made: StageTables, rows: np.ndarray, modality: str) -> None:
    flow.prove_column(made, "modality", modality)
    ids = made.kept["input_ids"]
    values, sizes = flat(ids).to_numpy(), lengths(ids)
    if modality != SPEECH:
        flow.prove_column(made, "frames", 0)
        grammar.prove_turns(values, sizes, made.path)
        return
    frames = made.kept["frames"].to_numpy().astype(np.int64)
    codes = grammar.speech_codes(values, sizes, frames, made.path)
    if made.before is not None:
        prove_transcripts(made)
        flow.prove_codes(made, rows, frames, codes)
