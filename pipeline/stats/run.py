"""The statistics of a run: those that are quick to compute, and all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import dropwhile, islice
from typing import Any

import pyarrow as pa

from koe.dataflow import INTERLEAVE, ORDER_UNIT, last_stage_with, stage_chain, stage_making
from koe.schema import EXCLUDED, SCHEMA_VERSION, SPEECH, TEXT, Unit
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.plan import Plan
from pipeline.run_dir.reading import Receipts, read_index, unit_receipts, unreadable_receipts
from pipeline.run_dir.set_aside import set_aside_units
from pipeline.run_dir.vouched import UnitFiles, open_vouched
from pipeline.stats.accounts import (
    LeftOut,
    account_unit,
    close_with_order,
    open_accounts,
    seconds_of,
    total_account,
)
from pipeline.stats.codebooks import CodebookUse
from pipeline.stats.distributions import Lengths, distributions
from pipeline.stats.duplicates import COLUMNS, Duplicates
from pipeline.stats.examples import Examples
from pipeline.stats.model import Account, CodecUsed, RunStats, ScoreStats, Thresholds
from pipeline.stats.scores import WHAT_IF_OVRL, ScoreTally
from pipeline.stats.shards import shard_files, shard_mix, shard_stats
from pipeline.stats.transcripts import TranscriptTally
from stages.settings import TokenizeConfig, TranscriptsConfig

_NO_CHECKS = TranscriptsConfig()


@dataclass(frozen=True)
class CountedUnits:
    """What receipts and scores tell of all units, up to the tokenize stage.

    `pending` are the stages and units that are to be done next, `codec` is the one in the receipts.
    """

    accounts: Mapping[str, Account]
    scores: ScoreStats | None
    thresholds: Thresholds
    codec: Mapping[str, Any]
    pending: Sequence[tuple[str, str]]

    def account(self, modality: str) -> Account:
        return total_account(self.accounts, modality)

    def stats(
        self, index: dict[str, Any] | None, order: Receipt | None, left_out: LeftOut
    ) -> RunStats:
        """Add what order and index tell. `left_out`: what the order left out."""
        accounts = deepcopy(dict(self.accounts))
        if order is not None and index is not None:
            close_with_order(accounts, order, left_out)
        return RunStats(
            schema_version=SCHEMA_VERSION,
            clips=total_account(accounts, SPEECH),
            samples=total_account(accounts, TEXT),
            sources=accounts,
            scores=self.scores,
            thresholds=self.thresholds,
            shards=shard_stats(index),
            codec=CodecUsed.of(self.codec if index is None else index["codec"]),
        )


class RunTally:
    """Counts the units of a run, one by one."""

    def __init__(
        self, plan: Plan, files: UnitFiles, thresholds: Sequence[float] = WHAT_IF_OVRL
    ) -> None:
        self.files, self.scores = files, ScoreTally(files, thresholds)
        self._pending: list[tuple[str, str]] = []
        self._accounts = open_accounts(plan)
        self._codec: dict[str, Any] = {}

    def add(self, unit: Unit, done: Receipts) -> None:
        """Count a unit, whose files `files` may hold already."""
        account = self._accounts[unit.source]
        account_unit(account, unit, done)
        self.scores.add(unit, done)
        account.seconds_kept -= _seconds_left_out(self.files, unit, done)
        encoded = done.get(stage_making("frames"))
        if not self._codec and encoded is not None:
            self._codec = encoded.content.get("codec", {})
        missing = [stage for stage in stage_chain(unit.modality) if stage not in done]
        self._pending.extend((stage, unit.unit) for stage in missing[:1])

    def counted(self) -> CountedUnits:
        """Return what was counted; the scores of all clips need not be held any longer."""
        return CountedUnits(
            accounts=self._accounts,
            scores=self.scores.scores(),
            thresholds=self.scores.thresholds(),
            codec=self._codec,
            pending=self._pending,
        )


def count_units(
    plan: Plan, ledger: Ledger, thresholds: Sequence[float] = WHAT_IF_OVRL
) -> CountedUnits:
    """Read the receipts and scores of all units."""
    return _count(plan, ledger, RunTally(plan, UnitFiles(ledger.storage), thresholds))


def run_stats(plan: Plan, ledger: Ledger, thresholds: Sequence[float] = WHAT_IF_OVRL) -> RunStats:
    """Return what receipts, scores and the index tell: the statistics shown at the end of a run."""
    return shown_stats(count_units(plan, ledger, thresholds), ledger)


def shown_stats(units: CountedUnits, ledger: Ledger) -> RunStats:
    """Return the statistics of `run_stats` where the units have been counted already."""
    return _with_shards(units, ledger, read_index(ledger))


def full_stats(
    plan: Plan,
    ledger: Ledger,
    thresholds: Sequence[float] = WHAT_IF_OVRL,
    on_unit: Callable[[int, int], None] = lambda done, total: None,
    transcripts: TranscriptsConfig = _NO_CHECKS,
    speech_prompt: str = TokenizeConfig.model_fields["speech_prompt"].default,
) -> RunStats:
    """Return all statistics, from one reading of every unit and shard.

    `transcripts`: the checks of transcripts to try, with the prompt that samples are made with.
    `on_unit` is called with the number of units read, and that of all. A clip takes 84 bytes of
    memory and an instruction sample 4, and half as much again while quantiles and duplicates are
    found: 1.9 GB for 15 M clips and 9 M samples. The files of one unit are held at a time, and the
    ids of clips lie in a temporary file.
    Raises: ContractError for a file of a unit that is not the one its receipt vouches for.
    """
    files, index = UnitFiles(ledger.storage), read_index(ledger)
    tally, lengths, examples = RunTally(plan, files, thresholds), Lengths(files), Examples(files)
    checked = TranscriptTally(files, transcripts, speech_prompt)
    done = iter(range(1, len(plan.units) + 1))
    with Duplicates() as duplicates:
        codebooks = CodebookUse()

        def watch(unit: Unit, receipts: Receipts) -> None:
            lengths.add(unit, receipts)
            examples.add(unit, receipts)
            checked.add(unit, receipts)
            _read_encoded(files, unit, receipts, codebooks, duplicates)
            on_unit(next(done), len(plan.units))

        units = _count(plan, ledger, tally, watch)
        stats = _with_shards(units, ledger, index, examples.take)
        repeats = duplicates.by_kind()
    of_clips = {**lengths.of_clips, **tally.scores.values}
    return replace(
        stats,
        distributions=distributions(of_clips, lengths.of_samples, plan.modalities),
        codebooks=codebooks.by_slot(),
        duplicates=repeats,
        transcripts=checked.stats(),
        mix=shard_mix(index, ledger.storage),
        shard_files=shard_files(index),
        quarantine_examples=examples.sorted(),
    )


def _count(
    plan: Plan,
    ledger: Ledger,
    tally: RunTally,
    watch: Callable[[Unit, Receipts], None] = lambda unit, receipts: None,
) -> CountedUnits:
    """Count all units, and show each to `watch`."""
    for unit, done in unit_receipts(plan, ledger):
        tally.files.next_unit()
        tally.add(unit, done)
        watch(unit, done)
    return tally.counted()


def _with_shards(
    units: CountedUnits,
    ledger: Ledger,
    index: dict[str, Any] | None,
    on_left_out: Callable[[pa.RecordBatch], None] = lambda excluded: None,
) -> RunStats:
    """Add to the units what lies after them.

    What interleave left out is shown to `on_left_out`, in batches of EXCLUDED.
    """
    order = ledger.receipt(INTERLEAVE, ORDER_UNIT)
    left_out, pending = LeftOut(), units.pending
    if order is None:
        pending = [*pending, (INTERLEAVE, ORDER_UNIT)]
    else:
        left_out = _left_out(ledger, order, on_left_out)
    stats = units.stats(index, order, left_out)
    aside = set_aside_units(ledger.storage)
    return replace(
        stats,
        unreadable_receipts=unreadable_receipts(ledger, pending),
        set_aside=[{"stage": a.stage, "unit": a.unit, "why": a.describe()} for a in aside],
    )


def _left_out(
    ledger: Ledger, order: Receipt, on_batch: Callable[[pa.RecordBatch], None]
) -> LeftOut:
    """Count what the order left out, and show its batches to `on_batch`."""
    left_out: LeftOut = LeftOut()
    if order.excluded is not None:
        with open_vouched(ledger.storage, order.excluded, EXCLUDED.names) as batches:
            for batch in batches:
                columns = (batch[name].to_pylist() for name in ("source", "outcome", "reason"))
                left_out.update(zip(*columns, strict=True))
                on_batch(batch)
    return left_out


def _seconds_left_out(files: UnitFiles, unit: Unit, receipts: Receipts) -> float:
    """Sum the seconds of the clips that the stages after the last one of clips left out."""
    if unit.modality != SPEECH:
        return 0.0
    last = last_stage_with("seconds")
    after = islice(dropwhile(lambda stage: stage != last, receipts), 1, None)
    tables = [table for stage in after if (table := receipts[stage].excluded) is not None]
    ids = [batch["id"] for table in tables for batch in files.batches(table, ["id"])]
    return seconds_of(files, receipts[last], pa.chunked_array(ids, pa.string())) if ids else 0.0


def _read_encoded(
    files: UnitFiles, unit: Unit, receipts: Receipts, codebooks: CodebookUse, duplicates: Duplicates
) -> None:
    encoded = receipts.get(last_stage_with("codes"))
    if encoded is None:
        return
    for clips in files.batches(encoded.output, COLUMNS):
        codebooks.add(clips["codes"])
        duplicates.add(unit.source, clips)
