"""Wires configuration, sources and stages to an engine: the one place where all rooms meet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from pipeline.assembly import Assembly
from pipeline.config import PipelineConfig
from pipeline.errors import ConfigError, StageError
from pipeline.fingerprint import sha256_json
from pipeline.interleaving import OrderStage, OrderWork, ShardWork, shard_places, write_index
from pipeline.ledger import Ledger
from pipeline.plan import Plan, make_plan
from pipeline.progress import RunProgress
from pipeline.runner import StageWork, UnitResult, Work, run_plain
from pipeline.schema import SPEECH, TEXT
from pipeline.stage import Stage
from pipeline.stats import INDEX, LANES, ORDER_UNIT
from pipeline.storage import Storage

if TYPE_CHECKING:  # training imports torch, which most commands do not need
    from training.launch import TrainResult
    from training.replay import Replay

STAGES = ("ingest", "score", "encode", "tokenize", "interleave", "train")


@dataclass(frozen=True)
class Selection:
    """The stages to run, in order, and those whose units are done again."""

    stages: tuple[str, ...] = STAGES
    force: frozenset[str] = frozenset()


def select_stages(
    first: str | None, last: str | None, only: str | None, force: Sequence[str]
) -> Selection:
    """Turn --from, --to, --only and --force into a selection.

    Raises: ConfigError for an unknown stage or options that exclude each other.
    """
    for name in (first, last, only, *force):
        if name is not None and name not in STAGES:
            raise ConfigError(f"there is no stage {name!r}", remedy=f"Stages: {', '.join(STAGES)}.")
    if only and (first or last):
        raise ConfigError("--only excludes --from and --to")
    start = STAGES.index(only or first or STAGES[0])
    stop = STAGES.index(only or last or STAGES[-1])
    if start > stop:
        raise ConfigError(f"--from {first} comes after --to {last}")
    chosen = STAGES[start : stop + 1]
    outside = [name for name in force if name not in chosen]
    if outside:
        raise ConfigError(
            f"--force {outside[0]} is not among the stages to run: {', '.join(chosen)}"
        )
    return Selection(chosen, frozenset(force))


@dataclass(frozen=True)
class JobReport:
    """What a run left undone, and how training went if it was among the stages."""

    failed: list[UnitResult]
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
    storage.write_bytes("config.json", saved.encode())
    return plan


def run_job(config: PipelineConfig, selection: Selection, console: Console) -> JobReport:
    """Run the selected stages over all units that are not done.

    All that can be refused is refused before the first unit. Units that fail are reported and
    left for the next run; interleave and train wait until there are none.
    Raises: ConfigError before any work; StageError when too much is quarantined or storage
    refuses, in a state that the same command resumes.
    """
    assembly = Assembly(config)
    if "train" in selection.stages:
        from training.launch import check

        check(config.train, ray_address=config.ray.address, num_cpus=config.ray.num_cpus)
    lanes = _lanes(assembly, selection)
    order = assembly.order() if "interleave" in selection.stages else None
    plan = plan_run(config, console)
    ledger = Ledger(Storage(config.run_dir))
    for stage in (*STAGES, "shards"):
        ledger.storage.sweep(stage)
    with _engine(config, assembly, selection) as engine, RunProgress(console) as progress:
        for modality, source, chain in lanes:
            units = [
                u.unit for u in plan.units if u.modality == modality and source in (None, u.source)
            ]
            work = [_work(stage, modality, plan, units, assembly, selection) for stage in chain]
            _run_lane(engine, work, units, progress)
        if not progress.failures:
            _check_quarantine(plan, ledger, config.max_quarantine_share)
            if order is not None:
                _interleave(engine, order, plan, ledger, selection, progress)
    training = None
    if "train" in selection.stages and not progress.failures:
        training = run_training(config, console, resume="train" not in selection.force)
    return JobReport(progress.failures, training)


Engine = Callable[[Sequence[Work], Sequence[str], Callable[[UnitResult], None]], bool]


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
    chosen = [makers[name]() for name in LANES[SPEECH] if name in selection.stages]
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
    place = LANES[modality].index(stage.name)
    return StageWork(
        stage=stage,
        upstream=LANES[modality][place - 1] if place else None,
        root=assembly.config.run_dir,
        units={unit: plan.descriptors[unit] for unit in units},
        reading={name: sha256_json(value) for name, value in assembly.reading.items()},
        force=stage.name in selection.force,
    )


def _run_lane(
    engine: Engine, chain: Sequence[Work], units: Sequence[str], progress: RunProgress
) -> None:
    for work in chain:
        progress.expect(work.name, len(units))
    if not engine(chain, units, progress.take):
        stopped = progress.stopped
        raise StageError(
            "the run stopped" + (f" at {stopped.stage} {stopped.unit}" if stopped else ""),
            stopped.error if stopped else "storage refused",
            "What is done stays done.",
        )


@contextmanager
def _engine(config: PipelineConfig, assembly: Assembly, selection: Selection) -> Iterator[Engine]:
    if config.engine == "inline":
        yield run_plain
        return
    from pipeline.engine import ray_session, run_ray  # seconds of import that inline spares

    sections = [getattr(config, name) for name in selection.stages if name in LANES[SPEECH]]
    chain_cpus = sum(section.cpus_per_worker for section in sections)
    with ray_session(config.ray.address, config.ray.num_cpus, chain_cpus):
        yield run_ray


def _check_quarantine(plan: Plan, ledger: Ledger, most: float) -> None:
    """Stop before interleave when the share of bad records says that something is wrong.

    Raises: StageError with the reasons and their counts.
    """
    for modality, stages in LANES.items():
        units = [unit for unit in plan.units if unit.modality == modality]
        records = sum(unit.num_records for unit in units)
        reasons: dict[str, int] = {}
        for unit in units:
            for stage in stages:
                receipt = ledger.receipt(stage, unit.unit)
                for reason, count in (receipt.quarantined if receipt else {}).items():
                    reasons[reason] = reasons.get(reason, 0) + count
        bad = sum(reasons.values())
        if records and bad / records > most:
            raise StageError(
                f"{bad} of {records} {modality} records are quarantined, more than "
                f"max_quarantine_share {most:g} allows",
                ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())),
                "Look at the *.excluded.arrow files of the run, mend the source or raise the share.",
            )


def _interleave(
    engine: Engine,
    stage: OrderStage,
    plan: Plan,
    ledger: Ledger,
    selection: Selection,
    progress: RunProgress,
) -> None:
    force = "interleave" in selection.force
    units = tuple(unit.unit for unit in plan.units)
    sources = tuple(unit.source for unit in plan.units)
    order = OrderWork(stage, ledger.storage.root, units, sources, force)
    _run_lane(engine, [order], [ORDER_UNIT], progress)
    receipt = ledger.receipt(stage.name, ORDER_UNIT)
    if progress.failures or receipt is None:
        return
    shards = list(shard_places(ledger.storage, receipt))
    work = ShardWork(stage, ledger.storage.root, receipt, units, force)
    _run_lane(engine, [work], shards, progress)
    if not progress.failures:
        write_index(stage, ledger, shards)


def run_training(config: PipelineConfig, console: Console, resume: bool = True) -> TrainResult:
    """Train on the run's shards, resuming from the newest checkpoint.

    Raises: ConfigError when there are no shards, or not the hardware that the config asks for.
    """
    from pipeline.speaking import speaking
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
        speaking=speaking(config),
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
    from pipeline.speaking import export_run

    export_run(config, folder, step, dtype)


def training_folder(config: PipelineConfig) -> Path:
    """Return the local folder of checkpoints and logs."""
    return Storage(config.run_dir).local_path("train")


def _shards_folder(config: PipelineConfig) -> Path:
    storage = Storage(config.run_dir)
    if storage.size(INDEX) is None:
        raise ConfigError(
            f"{config.run_dir} has no shards", remedy="Make them with `koe run --to interleave`."
        )
    return storage.local_path("shards")
