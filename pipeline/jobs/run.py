"""A run from the first unit to the trained model: here stages, engine and trainer meet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from koe.dataflow import CONFIG, INTERLEAVE, ORDER_UNIT, SHARDS, TRAIN, stage_names
from koe.errors import StageError
from koe.numbers import counted
from koe.printable import escape_control_characters
from koe.schema import QUARANTINED, SPEECH, TEXT
from koe.secrets import scrub
from koe.stage import RunsModel
from pipeline.config.models import PipelineConfig
from pipeline.execution.attempt_log import AttemptLog
from pipeline.execution.done_before import leave_done
from pipeline.execution.engines import Engine, attempt_log, forgetting, open_engine, run_chain
from pipeline.execution.interrupt import interruptible
from pipeline.execution.progress import RunProgress
from pipeline.execution.runner import UnitResult, Work
from pipeline.execution.selection import Selection
from pipeline.execution.stage_work import StageWork
from pipeline.jobs.assembly import Assembly
from pipeline.jobs.chains import Chain, build_chains, chains_of_work, room_needed
from pipeline.jobs.forecast import forecast, warnings
from pipeline.jobs.interleave import Shards
from pipeline.jobs.order import OrderWork
from pipeline.jobs.poison import find_poison
from pipeline.jobs.train import check_training, train_shards
from pipeline.run_dir.killers import forget_killers
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.lock import run_lock
from pipeline.run_dir.plan import Plan, by_source, lost_in, make_plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import CountedUnits, RunStats, count_units, shown_stats
from pipeline.stats.dataset_card import write_card
from stages.interleave import OrderStage
from stages.sources.base import SourceFiles
from stages.sources.checks.first_records import check_first_records
from stages.sources.files.moves import save_moves

if TYPE_CHECKING:  # training imports torch, which most commands do not need
    from training.launch import TrainResult


@dataclass(frozen=True)
class JobReport:
    """What a run left undone, its statistics if it left nothing, and how training went if it did."""

    failed: list[UnitResult]
    stats: RunStats | None = None
    training: TrainResult | None = None


def plan_run(config: PipelineConfig, console: Console, storage: Storage | None = None) -> Plan:
    """Plan the units of all sources, and save the plan and the configuration in the run directory.

    `storage` is the run directory's, as the holder of its lock has it.
    """
    assembly, storage = Assembly(config), storage or Storage(config.run_dir)
    assembly.check_sources()
    sources = (*assembly.speech_sources, *assembly.text_sources.values())
    plan = make_plan(
        [(source, assembly.reading[source.name]) for source in sources],
        storage,
        lambda source, path: console.print(
            f"planning {source}: {path}", markup=False, style="dim", soft_wrap=True
        ),
    )
    save_moves(assembly.index_folder, plan.moves)
    for source in sources:
        _say_what_is_not_read(source, plan, console)
    saved = json.dumps(config.model_dump(mode="json"), ensure_ascii=False, indent=1)
    storage.write_bytes(CONFIG, scrub(saved).encode())
    return plan


def _say_what_is_not_read(source: SourceFiles[Any], plan: Plan, console: Console) -> None:
    """Check the fields of a source on its first records, and say what they and its files have beside.

    Raises: ConfigError, StorageError.
    """
    units = plan.units_of(source.modality, source.name)
    notes = check_first_records(source, units)
    lines = [] if units else ["none of its files holds a record"]
    lines += [f"{note} ({number:,} of the first records)" for note, number in notes.items()]
    remarks = plan.remarks.get(source.name, {})
    lines += [f"{remark} ({counted(number, 'record')})" for remark, number in remarks.items()]
    for line in lines:
        line = f"source {source.name}: {line}"
        console.print(escape_control_characters(line), style="yellow", markup=False, soft_wrap=True)


def run_job(
    config: PipelineConfig, selection: Selection, console: Console, retry_set_aside: bool = False
) -> JobReport:
    """Run the selected stages over all units that are not done.

    Everything is validated before the first unit runs. Units that fail are reported and
    left for the next run; interleave and train wait until there are none. Units whose attempts never
    end are set aside, and left aside by later runs unless `retry_set_aside`, which also tries the records
    again that were found to end their worker.
    Raises: ConfigError before any work or while another process is using the run directory; StageError
    when too much is quarantined or the storage fails, and KeyboardInterrupt after Ctrl-C: resumable.
    """
    assembly = Assembly(config)
    assembly.check_sources()  # takes no time; weights may have to be downloaded
    with run_lock(Storage(config.run_dir), partial(console.print, markup=False)) as storage:
        return _run_job(assembly, selection, console, storage, retry_set_aside)


def _run_job(
    assembly: Assembly,
    selection: Selection,
    console: Console,
    storage: Storage,
    retry_set_aside: bool,
) -> JobReport:
    config = assembly.config
    trains = TRAIN in selection.stages
    if trains:
        check_training(config)
    built = build_chains(assembly, selection)
    order = None
    if INTERLEAVE in selection.stages:
        order = assembly.order(Ledger(storage).receipt(INTERLEAVE, ORDER_UNIT))
    plan = plan_run(config, console, storage)
    if order is not None:
        order = replace(order, samples=sum(unit.records for unit in plan.units))
        _say_what_to_expect(assembly, plan, selection, console)
    _say_which_engines_run(built, console)
    ledger = Ledger(storage)
    ledger.storage.sweep((*stage_names(), SHARDS))
    with attempt_log(ledger.storage, config.plan, retry_set_aside, selection.stages) as log:
        if retry_set_aside:
            forget_killers(ledger.storage, selection.stages)
        if selection.find_poison:
            works = [
                work
                for found, _ in chains_of_work(built, plan, assembly, selection, ledger)
                for work in found
            ]
            find_poison(works, selection.unit, ledger, log, partial(_say, console))
        chains = chains_of_work(built, plan, assembly, selection, ledger)
        progress, stats = _run_units(assembly, selection, plan, ledger, log, chains, order, console)
    training = None
    if trains and not progress.failures:
        training = train_shards(config, console, resume=TRAIN not in selection.force)
    return JobReport(progress.failures, stats, training)


def _run_units(
    assembly: Assembly,
    selection: Selection,
    plan: Plan,
    ledger: Ledger,
    log: AttemptLog,
    chains: list[tuple[list[StageWork], list[str]]],
    order: OrderStage | None,
    console: Console,
) -> tuple[RunProgress, RunStats | None]:
    """Take all units through their chains, and make the shards where nothing is left undone."""
    config, stats = assembly.config, None
    needed = room_needed([works for works, _ in chains], order)
    with (
        interruptible(lambda text: console.print(text, style="yellow", highlight=False)) as stop,
        open_engine(config, needed, stop, log, console) as engine,
        RunProgress(console) as progress,
    ):
        for works, units in chains:  # before the first runs, so that the time left covers all
            progress.expect(works, len(units))
        for works, units in leave_done(chains, ledger, forgetting(log, progress.take)):
            run_chain(engine, works, units, progress)
        if not progress.failures:
            counted = count_units(plan, ledger)  # once: each reading of the receipts takes minutes
            _check_quarantine(plan, counted, config.max_quarantine_share)
            force = INTERLEAVE in selection.force
            if order is None:
                stats = shown_stats(counted, ledger)
            elif _interleave(engine, order, plan, ledger, force, progress):
                stats = shown_stats(counted, ledger)
                write_card(ledger, stats)
    if stop.requested:  # during the last units
        raise KeyboardInterrupt
    return progress, stats


def _say(console: Console, text: str) -> None:
    text = escape_control_characters(text)
    console.print(text, markup=False, style="yellow", highlight=False, soft_wrap=True)


def _say_which_engines_run(chains: Sequence[Chain], console: Console) -> None:
    for stage in (stage for chain in chains for stage in chain.stages):
        if isinstance(stage, RunsModel) and stage.engine_description:
            line = f"{stage.name}: {stage.engine_description}"
            console.print(line, markup=False, style="dim", soft_wrap=True)


def _say_what_to_expect(
    assembly: Assembly, plan: Plan, selection: Selection, console: Console
) -> None:
    found = forecast(assembly, plan)
    lines = [
        *warnings(assembly.config, found, selection.stages),
        *(f"not read for the forecast: {source}" for source in found.unread),
    ]
    for line in lines:
        console.print(f"note: {line}", markup=False, style="yellow", soft_wrap=True)


def _check_quarantine(plan: Plan, counted: CountedUnits, most: float) -> None:
    """Stop before interleave when the share of bad records says that something is wrong.

    Raises: StageError with the reasons and their counts.
    """
    for modality in (SPEECH, TEXT):
        account = counted.account(modality)
        lost = [lost_in(group) for group in by_source(plan.units_of(modality)).values()]
        uncounted = sum(found.uncounted for found in lost)
        records, reasons = account.records_in + uncounted, account.reasons(QUARANTINED)
        bad = account.quarantined.total() + uncounted
        if records and bad / records > most:
            about = "about " if uncounted else ""
            found = [f"{reason} {count}" for reason, count in reasons.items()]
            found += [f"about {uncounted} more in unreadable_bytes"] if uncounted else []
            raise StageError(
                f"{about}{bad} of {records} {modality} records are quarantined, more than "
                f"max_quarantine_share {most:g} allows",
                ", ".join(found),
                "`koe stats` shows an example of each. Repair the source, or raise max_quarantine_share.",
            )


def _interleave(
    engine: Engine,
    stage: OrderStage,
    plan: Plan,
    ledger: Ledger,
    force: bool,
    progress: RunProgress,
) -> bool:
    """Make the order, then the shards and their index; return whether no unit failed."""
    units = tuple(unit.unit for unit in plan.units)
    sources = tuple(unit.source for unit in plan.units)

    def run(work: Work, names: Sequence[str], done: Sequence[UnitResult]) -> bool:
        progress.expect([work], len(names) + len(done))
        for result in done:
            progress.take(result)
        run_chain(engine, [work.under(ledger.storage.token)], names, progress)
        return not progress.failures

    order = OrderWork(stage, ledger.storage.root, units, sources, force)
    return run(order, [ORDER_UNIT], ()) and bool(Shards(stage, ledger, units, run, force).make())
