"""The statistics of a run: those that are quick to compute, and all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import dropwhile, islice

from koe.dataflow import last_stage_with, stage_making
from koe.schema import SCHEMA_VERSION, SPEECH, TEXT, Unit
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan
from pipeline.run_dir.reading import Receipts, read_index, unit_receipts
from pipeline.stats.accounts import (
    account_sources,
    close_with_order,
    encoded_seconds,
    total_account,
)
from pipeline.stats.codebooks import CodebookUse
from pipeline.stats.distributions import Lengths, distributions
from pipeline.stats.duplicates import COLUMNS, Duplicates
from pipeline.stats.examples import Examples
from pipeline.stats.model import CodecUsed, RunStats
from pipeline.stats.scores import WHAT_IF_OVRL, ScoreTally
from pipeline.stats.shards import shard_files, shard_mix, shard_stats
from pipeline.stats.transcripts import TranscriptTally
from stages.settings import TokenizeConfig, TranscriptsConfig

_NO_CHECKS = TranscriptsConfig()


def run_stats(plan: Plan, ledger: Ledger, thresholds: Sequence[float] = WHAT_IF_OVRL) -> RunStats:
    """Return what receipts, scores and the index tell: the statistics shown at the end of a run."""
    return _collect(plan, ledger, ScoreTally(ledger, thresholds))


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
    found: 1.9 GB for 15 M clips and 9 M samples.
    """
    scores, lengths, examples = ScoreTally(ledger, thresholds), Lengths(ledger), Examples(ledger)
    codebooks, duplicates = CodebookUse(), Duplicates(ledger)
    checked = TranscriptTally(ledger, transcripts, speech_prompt)
    done = iter(range(1, len(plan.units) + 1))

    def watch(unit: Unit, receipts: Receipts) -> None:
        lengths.add(unit, receipts)
        examples.add(unit, receipts)
        checked.add(unit, receipts)
        _read_encoded(ledger, unit, receipts, codebooks, duplicates)
        on_unit(next(done), len(plan.units))

    stats = _collect(plan, ledger, scores, watch)
    index = read_index(ledger)
    of_clips = {**lengths.of_clips, **scores.values}
    return replace(
        stats,
        distributions=distributions(of_clips, lengths.of_samples, plan.modalities),
        codebooks=codebooks.by_slot(),
        duplicates=duplicates.by_kind(),
        transcripts=checked.stats(),
        mix=shard_mix(index, ledger),
        shard_files=shard_files(index),
        quarantine_examples=examples.sorted(),
    )


def _collect(
    plan: Plan,
    ledger: Ledger,
    scores: ScoreTally,
    watch: Callable[[Unit, Receipts], None] = lambda unit, receipts: None,
) -> RunStats:
    """Account for the records of all units, and show each unit to the scores and to `watch`."""
    index = read_index(ledger)
    codec = {} if index is None else index["codec"]
    lost: defaultdict[str, float] = defaultdict(float)  # encoded seconds left out, by source

    def seen() -> Iterator[tuple[Unit, Receipts]]:
        nonlocal codec
        for unit, done in unit_receipts(plan, ledger):
            scores.add(unit, done)
            watch(unit, done)
            lost[unit.source] += _seconds_left_out(ledger, unit, done)
            encoded = done.get(stage_making("frames"))
            if not codec and index is None and encoded is not None:
                codec = encoded.content.get("codec", {})
            yield unit, done

    accounts = account_sources(plan, seen())
    close_with_order(accounts, ledger)
    for source, account in accounts.items():
        account.seconds_kept -= lost[source]
    return RunStats(
        schema_version=SCHEMA_VERSION,
        clips=total_account(accounts, SPEECH),
        samples=total_account(accounts, TEXT),
        sources=accounts,
        scores=scores.scores(),
        thresholds=scores.thresholds(),
        shards=shard_stats(index),
        codec=CodecUsed.of(codec),
    )


def _seconds_left_out(ledger: Ledger, unit: Unit, receipts: Receipts) -> float:
    """Sum the seconds of the clips that the stages after the last one of clips left out."""
    if unit.modality != SPEECH:
        return 0.0
    after = dropwhile(lambda stage: stage != last_stage_with("seconds"), receipts)
    tables = [ledger.read_excluded(receipts[stage]) for stage in islice(after, 1, None)]
    return sum(
        encoded_seconds(ledger, unit.unit, table["id"]) for table in tables if table is not None
    )


def _read_encoded(
    ledger: Ledger, unit: Unit, receipts: Receipts, codebooks: CodebookUse, duplicates: Duplicates
) -> None:
    encoded = receipts.get(last_stage_with("codes"))
    if encoded is None:
        return
    path = encoded.output.path
    duplicates.open_unit(path, unit.source)
    with ledger.storage.open_batches(path, COLUMNS) as batches:
        for clips in batches:
            codebooks.add(clips["codes"])
            duplicates.add(clips)
