"""Wires configuration, sources and stages to an engine: the one place where all rooms meet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from koe.dataflow import (
    CONFIG,
    INDEX,
    INTERLEAVE,
    ORDER_UNIT,
    SHARDS,
    TRAIN,
    stage_chain,
    stage_names,
)
from koe.errors import ConfigError, StageError
from koe.fingerprint import sha256_json
from koe.schema import SPEECH, TEXT
from koe.stage import Stage
from pipeline.config.models import PipelineConfig
from pipeline.execution.interrupt import interruptible
from pipeline.execution.progress import RunProgress
from pipeline.execution.runner import StageWork, Stop, UnitResult, Work, run_plain
from pipeline.execution.selection import Selection
from pipeline.jobs.assembly import Assembly
from pipeline.jobs.interleave import OrderStage, OrderWork, ShardWork, shard_places, write_index
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.lock import run_lock
from pipeline.run_dir.plan import Plan, make_plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import RunStats
from pipeline.stats.dataset_card import write_card

if TYPE_CHECKING:  # training imports torch, which most commands do not need
    from training.launch import TrainResult
    from training.replay import Replay


@dataclass(frozen=True)
class JobReport:
    """What a run left undone, its statistics if it made shards, and how training went if it did."""

    failed: list[UnitResult]
    stats: RunStats | None = None
    training: TrainResult | None = None


def plan_run(config: PipelineConfig, console: Console) -> Plan:
    """Plan the units of all sources, and save the plan and the configuration in the run directory."""
    assembly, storage = Assembly(config), Storage(config.run_dir)
    plan = make_plan(
        [
            (source, assembly.reading[source.name])
            for source in (*assembly.speech_sources, *assembly.text_sources.values())
        ],
        storage,
        lambda source, path: console.print(
            f"planning {source}: {path}", markup=False, style="dim", soft_wrap=True
        ),
    )
    saved = json.dumps(config.model_dump(mode="json"), ensure_ascii=False, indent=1)
    storage.write_bytes(CONFIG, saved.encode())
    return plan


def run_job(config: PipelineConfig, selection: Selection, console: Console) -> JobReport:
    """Run the selected stages over all units that are not done.

    All that can be refused is refused before the first unit. Units that fail are reported and
    left for the next run; interleave and train wait until there are none.
    Raises: ConfigError before any work or while another process is at the run directory; StageError
    when too much is quarantined or storage refuses, and KeyboardInterrupt after Ctrl-C: resumable.
    """
    with run_lock(Storage(config.run_dir)):
        return _run_job(config, selection, console)


def _run_job(config: PipelineConfig, selection: Selection, console: Console) -> JobReport:
    assembly = Assembly(config)
    if TRAIN in selection.stages:
        from training.launch import check

        check(config.train, ray_address=config.ray.address, num_cpus=config.ray.num_cpus)
    lanes = _lanes(assembly, selection)
    order = assembly.order() if INTERLEAVE in selection.stages else None
    plan = plan_run(config, console)
    ledger = Ledger(Storage(config.run_dir))
    for stage in (*stage_names(), SHARDS):
        ledger.storage.sweep(stage)
    stats = None
    with (
        interruptible(lambda text: console.print(text, style="yellow", highlight=False)) as stop,
        _engine(config, assembly, selection, stop) as engine,
        RunProgress(console) as progress,
    ):
        chains: list[tuple[list[StageWork], list[str]]] = []
        for modality, source, stages in lanes:
            units = [
                u.unit for u in plan.units if u.modality == modality and source in (None, u.source)
            ]
            chain = [_work(stage, modality, plan, units, assembly, selection) for stage in stages]
            progress.expect(chain, len(units))  # of all chains first: the time left is of all
            chains.append((chain, units))
        for chain, units in chains:
            _run_chain(engine, chain, units, progress)
        if not progress.failures:
            _check_quarantine(plan, ledger, config.max_quarantine_share)
            if order is not None:
                stats = _interleave(engine, order, plan, ledger, selection, progress)
    if stop.requested:  # during the last units
        raise KeyboardInterrupt
    training = None
    if TRAIN in selection.stages and not progress.failures:
        training = _train(config, console, resume=TRAIN not in selection.force)
    return JobReport(progress.failures, stats, training)


RunChain = Callable[[Sequence[Work], Sequence[str], Callable[[UnitResult], None]], bool]


def _lanes(assembly: Assembly, selection: Selection) -> list[tuple[str, str | None, list[Stage]]]:
    """Build the chains of stages: one for all speech, one for each text source."""
    lanes: list[tuple[str, str | None, list[Stage]]] = []
    if "tokenize" in selection.stages:
        lanes += [
            (TEXT, item.name, [assembly.tokenize_text(item.name)])
            for item in assembly.config.sources.text
        ]
    makers = {
        "ingest": assembly.ingest,
        "score": assembly.score,
        "encode": assembly.encode,
        "tokenize": assembly.tokenize_speech,
    }
    chosen = [makers[name]() for name in stage_chain(SPEECH) if name in selection.stages]
    if assembly.config.sources.speech and chosen:
        lanes.append((SPEECH, None, chosen))
    return lanes


def _work(
    stage: Stage,
    modality: str,
    plan: Plan,
    units: Sequence[str],
    assembly: Assembly,
    selection: Selection,
) -> StageWork:
    place = stage_chain(modality).index(stage.name)
    return StageWork(
        stage=stage,
        upstream=stage_chain(modality)[place - 1] if place else None,
        root=assembly.config.run_dir,
        units={unit: plan.descriptors[unit] for unit in units},
        reading={name: sha256_json(value) for name, value in assembly.reading.items()},
        force=stage.name in selection.force,
    )


def _run_chain(
    engine: RunChain, chain: Sequence[Work], units: Sequence[str], progress: RunProgress
) -> None:
    if engine(chain, units, progress.take):
        return
    stopped = progress.stopped
    if stopped is None:  # by the user
        raise KeyboardInterrupt
    raise StageError(
        f"the run stopped at {stopped.stage} {stopped.unit}",
        stopped.error.removesuffix("."),
        "What is done stays done.",
    )


@contextmanager
def _engine(
    config: PipelineConfig, assembly: Assembly, selection: Selection, stop: Stop
) -> Iterator[RunChain]:
    if config.engine == "inline":
        yield partial(run_plain, stop=stop)
        return
    from pipeline.execution.on_ray import (  # seconds of import that inline spares
        ray_session,
        run_ray,
    )

    sections = [getattr(config, name) for name in selection.stages if name in stage_chain(SPEECH)]
    chain_cpus = sum(section.cpus_per_worker for section in sections)
    with ray_session(config.ray.address, config.ray.num_cpus, chain_cpus):
        yield partial(run_ray, stop=stop)


def _check_quarantine(plan: Plan, ledger: Ledger, most: float) -> None:
    """Stop before interleave when the share of bad records says that something is wrong.

    Raises: StageError with the reasons and their counts.
    """
    for modality in (SPEECH, TEXT):
        stages = stage_chain(modality)
        units = [unit for unit in plan.units if unit.modality == modality]
        records = sum(unit.num_records for unit in units)
        reasons: Counter[str] = Counter()
        for unit in units:
            for receipt in (ledger.receipt(stage, unit.unit) for stage in stages):
                reasons.update(receipt.quarantined if receipt else {})
        bad = reasons.total()
        if records and bad / records > most:
            raise StageError(
                f"{bad} of {records} {modality} records are quarantined, more than "
                f"max_quarantine_share {most:g} allows",
                ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())),
                "`koe stats` shows an example of each. Mend the source, or raise max_quarantine_share.",
            )


def _interleave(
    engine: RunChain,
    stage: OrderStage,
    plan: Plan,
    ledger: Ledger,
    selection: Selection,
    progress: RunProgress,
) -> RunStats | None:
    force = INTERLEAVE in selection.force
    units = tuple(unit.unit for unit in plan.units)
    sources = tuple(unit.source for unit in plan.units)
    order = OrderWork(stage, ledger.storage.root, units, sources, force)
    progress.expect([order], 1)
    _run_chain(engine, [order], [ORDER_UNIT], progress)
    receipt = ledger.receipt(stage.name, ORDER_UNIT)
    if progress.failures or receipt is None:
        return None
    shards = list(shard_places(ledger.storage, receipt))
    work = ShardWork(stage, ledger.storage.root, receipt, units, force)
    progress.expect([work], len(shards))
    _run_chain(engine, [work], shards, progress)
    if progress.failures:
        return None
    write_index(stage, ledger, shards)
    return write_card(plan, ledger)


def run_training(config: PipelineConfig, console: Console, resume: bool = True) -> TrainResult:
    """Train on the run's shards, resuming from the newest checkpoint.

    Raises: ConfigError when there are no shards, or not the hardware that the config asks for, or
    when another process is at the run directory.
    """
    _shards_folder(config)  # a run directory that does not exist is not made
    with run_lock(Storage(config.run_dir)):
        return _train(config, console, resume)


def _train(config: PipelineConfig, console: Console, resume: bool) -> TrainResult:
    from pipeline.jobs.speech_samples import sample_generator
    from training.launch import launch

    shards = _shards_folder(config)
    console.print(f"train       up to step {config.train.max_steps}", markup=False)
    return launch(
        config.train,
        shards,
        training_folder(config),
        resume=resume,
        ray_address=config.ray.address,
        num_cpus=config.ray.num_cpus,
        sample_generator=sample_generator(config),
    )


def replay_event(config: PipelineConfig, event: str) -> Replay:
    """Run the step of an event of the run's training again, in this process.

    Raises: ConfigError.
    """
    from training.replay import replay

    return replay(config.train, _shards_folder(config), training_folder(config), event)


def export_model(
    config: PipelineConfig, folder: Path, step: int | None, dtype: Literal["bf16", "fp32"]
) -> None:
    """Write a checkpoint of the run's training as a Hugging Face folder.

    Raises: ConfigError when there is no such checkpoint, or `folder` is not free.
    """
    from pipeline.jobs.speech_samples import export_run

    export_run(config, folder, step, dtype)


def training_folder(config: PipelineConfig) -> Path:
    """Return the local folder of checkpoints and logs."""
    return Storage(config.run_dir).local_path(TRAIN)


def _shards_folder(config: PipelineConfig) -> Path:
    storage = Storage(config.run_dir)
    if storage.size(INDEX) is None:
        raise ConfigError(
            f"{config.run_dir} has no shards", remedy="Make them with `koe run --to interleave`."
        )
    return storage.local_path(SHARDS)
