"""Everything that a training run holds between two steps: built once, closed at its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from koe.errors import ConfigError
from training import changes, preflight
from training.checkpoint import folder as checkpoints
from training.checkpoint.keeping import Keeping
from training.checkpoint.manifest import Progress
from training.checkpoint.store import CheckpointStore
from training.checkpoint.writer import CheckpointWriter
from training.config import TrainConfig
from training.data.loader import RowOrder, StepLoader
from training.data.shard_rows import TRAIN, VALIDATION, ShardRows
from training.evaluation import evaluate
from training.generation import SampleGenerator
from training.guard import Guard
from training.logs import LOGS
from training.metrics import RunLog, say
from training.mirror import Mirror
from training.model.average import WeightAverage
from training.model.distributed import Ranks, choose_compile, parallelise
from training.model.llama import PackedLlama, build_model
from training.model.optim import NewRowsRate, build_optimizer, trainable
from training.places import Place, beside, local_folder
from training.resume import resume
from training.samples import speak
from training.stopping import Why, never
from training.validation import ValidationLosses

CHECKPOINT_FOLDER = "checkpoints"
MODEL_FOLDER = "model"  # the model's config.json, from which export builds it


@dataclass
class Run:
    """One rank's share of a run. `model` is `plain_model` as FSDP or DDP wraps it."""

    config: TrainConfig
    place: Place  # of checkpoints and logs
    out_dir: Path  # where this rank writes logs, which are copied if `place` is a URL
    ranks: Ranks
    rows: ShardRows
    validation: ShardRows | None  # None where nothing is evaluated
    plain_model: PackedLlama
    model: nn.Module
    optimizer: torch.optim.Optimizer
    new_rows_rate: NewRowsRate
    average: WeightAverage | None  # of the weights, where it is asked for
    guard: Guard
    losses: ValidationLosses
    progress: Progress
    loader: StepLoader
    store: CheckpointStore
    writer: CheckpointWriter
    log: RunLog | None  # of rank 0
    sample_generator: SampleGenerator | None
    asked: Callable[[], Why] = never  # what this rank was asked to do
    saved: Progress | None = None  # that of the newest checkpoint, which may still be written
    step_ended_at: float | None = None  # on time.perf_counter(); None: the next starts afresh

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return trainable(self.plain_model)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.loader.close()
        if self.validation:
            self.validation.close()
        self.writer.close()
        self.store.close()
        if self.log:
            self.log.close()

    def event(self, kind: str, **details: Any) -> None:
        """Record an event that belongs to no batch."""
        if self.log:
            self.log.event(kind, self.progress, **details)

    def save(self) -> None:
        """Start writing a checkpoint of the present state."""
        if self.log:
            self.log.sync()
        state = {
            "guard": self.guard.state_dict(),
            "validation": self.losses.state_dict(),
            "settings": changes.as_stored(self.config),
        }
        self.writer.start(
            self.progress,
            self.plain_model,
            self.optimizer,
            state,
            average=self.average,
            validation_loss=self.losses.at(self.progress.steps),
        )
        self.saved = self.progress

    def evaluate(self) -> None:
        """Measure the loss on the validation split and speak the prompts; training state stays."""
        if self.validation is None:
            return
        found = evaluate(self.model, self.validation, self.ranks, self.config)
        self.losses.add(self.progress.steps, found.loss)
        measured = asdict(found) | {"lowest": self.losses.lowest}
        if self.average:
            with self.average.in_place_of_weights():
                of_average = evaluate(self.model, self.validation, self.ranks, self.config)
            measured["ema_loss"] = of_average.loss
        samples = speak(
            self.model, self.validation, self.ranks, self.config, self.sample_generator, self.out_dir,
            self.progress.steps, self.log.board if self.log else None,
        )  # fmt: skip
        if self.log:
            self.log.evaluation(self.progress, measured | {"samples": samples})


def open_run(
    config: TrainConfig,
    shards: Place,
    place: Place,
    ranks: Ranks,
    sample_generator: SampleGenerator | None,
    asked: Callable[[], Why] = never,
    *,
    writes: bool = True,
) -> Run:
    """Check settings and shards, build model and optimizer, and resume.

    One that does not write leaves the folder of the run as it is. Raises: ConfigError, ContractError.
    """
    with ExitStack() as undo:  # of what has been opened, should the next not open
        rows, validation = _open_rows(config, shards, ranks, undo)
        store = checkpoints.open_store(beside(place, CHECKPOINT_FOLDER))
        undo.callback(store.close)
        mirror = _open_mirror(config, place, undo) if ranks.is_main and writes else None
        out_dir = mirror.folder if mirror else local_folder(place) or Path()
        plain_model, model = _build_models(config, ranks)
        if ranks.is_main and writes:
            plain_model.config.save_pretrained(out_dir / MODEL_FOLDER)  # for the export
        if mirror:
            mirror.copy()  # if nothing can be written there, it is known before the first step
        optimizer = build_optimizer(plain_model, config)
        average = WeightAverage(plain_model, config.ema_decay) if config.ema_decay else None
        guard = Guard(config.guard, config.learning_rate)
        losses = ValidationLosses(config.early_stopping)
        progress, changed = resume(
            config, rows, store, plain_model, optimizer, average, guard, losses, ranks
        )
        run = Run(
            config=config,
            place=place,
            out_dir=out_dir,
            ranks=ranks,
            rows=rows,
            validation=validation,
            plain_model=plain_model,
            model=model,
            optimizer=optimizer,
            new_rows_rate=NewRowsRate(optimizer, plain_model.model.embed_tokens.weight),
            average=average,
            guard=guard,
            losses=losses,
            progress=progress,
            loader=_open_loader(config, rows, ranks, plain_model.num_embeddings),
            store=store,
            writer=_open_writer(config, store, ranks, mirror),
            log=RunLog(out_dir, progress.data_steps, config, mirror)
            if ranks.is_main and writes
            else None,
            sample_generator=sample_generator,
            asked=asked,
            saved=progress if progress.steps else None,
        )
        undo.pop_all()
    run.event("started", workers=ranks.world, process=os.getpid(), reason="; ".join(changed))
    return run


def _open_writer(
    config: TrainConfig, store: CheckpointStore, ranks: Ranks, mirror: Mirror | None
) -> CheckpointWriter:
    return CheckpointWriter(
        store,
        ranks,
        keeping=Keeping(
            newest=config.keep_checkpoints,
            back_steps=config.guard.roll_back_steps,
            best=config.keep_best,
            every_steps=config.keep_every_steps,
            weights_only=config.keep_weights_only,
        ),
        asynchronous=config.async_checkpoints,
        before_commit=mirror.copy if mirror else lambda: None,  # a resume cuts the logs there
    )


def _open_rows(
    config: TrainConfig, shards: Place, ranks: Ranks, undo: ExitStack
) -> tuple[ShardRows, ShardRows | None]:
    """Open the splits of training and evaluation, and refuse what `preflight` does."""
    preflight.require(preflight.refused_settings(config), config)
    require_world(config, ranks)
    rows = ShardRows(shards, TRAIN, config.shard_cache_gigabytes)
    undo.callback(rows.close)
    rows.require_room(config.rows_per_step, config.max_steps)
    preflight.require(preflight.refused_shards(rows.max_row_tokens, rows.modality, config), config)
    if config.early_stopping and VALIDATION not in rows.splits:
        raise ConfigError(
            "train.early_stopping is set, but the shards have no validation split",
            "it follows the loss on those shards",
            "Set interleave.validation_share and write the shards again, or "
            "train.early_stopping: null.",
        )
    if not config.evaluation.every_steps or VALIDATION not in rows.splits:
        return rows, None
    validation = ShardRows(shards, VALIDATION, config.shard_cache_gigabytes)
    undo.callback(validation.close)
    return rows, validation


def _open_mirror(config: TrainConfig, place: Place, undo: ExitStack) -> Mirror | None:
    """Open a local folder for the logs of a run at a URL, with those that it has; on rank 0."""
    if local_folder(place) is not None:
        return None
    mirror = Mirror(str(place), config.mirror_every_seconds, say)
    undo.callback(mirror.abandon)
    mirror.fetch(LOGS)
    return mirror


def _build_models(config: TrainConfig, ranks: Ranks) -> tuple[PackedLlama, nn.Module]:
    """Build the model, and wrap it for the ranks."""
    plain_model = build_model(config).to(ranks.device)  # pyright: ignore[reportArgumentType]
    model = parallelise(
        plain_model,
        ranks,
        config.parallel,
        config.precision,
        compile=choose_compile(config.compile, config.device),
        activation_checkpointing=config.activation_checkpointing,
    )
    if config.adapter:
        torch.manual_seed(config.seed + ranks.rank)  # or all ranks would drop the same inputs
    return plain_model, model.train()


def _open_loader(
    config: TrainConfig, rows: ShardRows, ranks: Ranks, num_embeddings: int
) -> StepLoader:
    compiled = choose_compile(config.compile, config.device)
    return StepLoader(
        rows,
        RowOrder(rows.modality, config.rows_per_step, config.seed),
        ranks,
        micro_batch_rows=config.micro_batch_rows,
        num_embeddings=num_embeddings,
        loss_on=config.loss_on,
        min_width=rows.max_row_tokens if compiled else 0,
    )


def require_world(config: TrainConfig, ranks: Ranks) -> None:
    """Refuse to run with a number of processes that the configuration does not allow.

    Raises: ConfigError.
    """
    if ranks.world not in config.worlds:
        allowed = " or ".join(map(str, config.worlds))
        raise ConfigError(
            f"{ranks.world} processes run, but train.workers is {config.workers}",
            "workers x micro_batch_rows x accumulation_steps is the batch, which would change",
            f"Start {allowed} processes, or set train.workers: {ranks.world}.",
        )
