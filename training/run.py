"""Everything that a training run holds between two steps: built once, closed at its end."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from koe.errors import ConfigError
from training import preflight
from training.checkpoint import rollback
from training.checkpoint import writer as checkpoints
from training.config import TrainConfig
from training.data.loader import RowOrder, StepLoader
from training.data.shard_rows import ShardRows
from training.evaluation import evaluate
from training.generation import SampleGenerator, speak
from training.guard import Guard
from training.metrics import RunLog, say
from training.model.distributed import Ranks, choose_compile, parallelise
from training.model.llama import PackedLlama, build_model
from training.model.optim import NewRowsRate, build_optimizer
from training.observe import Observer

CHECKPOINT_FOLDER = "checkpoints"
MODEL_FOLDER = "model"  # the model's config.json, from which export builds it


@dataclass
class Run:
    """One rank's share of a run. `model` is `plain_model` as FSDP or DDP wraps it."""

    config: TrainConfig
    out_dir: Path
    ranks: Ranks
    rows: ShardRows
    plain_model: PackedLlama
    model: nn.Module
    optimizer: torch.optim.Optimizer
    new_rows_rate: NewRowsRate
    guard: Guard
    progress: checkpoints.Progress
    loader: StepLoader
    writer: checkpoints.CheckpointWriter
    observer: Observer
    log: RunLog | None
    speaking: SampleGenerator | None
    step_ended_at: float | None = None  # on time.perf_counter(); None if the next has a fresh start

    @property
    def folder(self) -> Path:
        return self.out_dir / CHECKPOINT_FOLDER

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.plain_model.parameters())

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.loader.close()
        self.writer.close()
        if self.log:
            self.log.close()

    def save(self) -> None:
        """Begin to write a checkpoint of this moment."""
        if self.log:
            self.log.sync()
        state = {"guard": self.guard.state_dict()}
        self.writer.start(self.progress, self.plain_model, self.optimizer, state)

    def evaluate(self) -> None:
        """Measure the loss on the validation split and speak the prompts; training state stays."""
        if "validation" not in self.rows.splits:
            return
        rows = ShardRows(self.rows.folder, "validation")
        found = evaluate(self.model, rows, self.ranks, self.config)
        samples = speak(
            self.model, rows, self.ranks, self.config, self.speaking, self.out_dir,
            self.progress.steps, self.log.board if self.log else None,
        )  # fmt: skip
        if self.log:
            self.log.evaluation(self.progress, found.as_dict() | {"samples": samples})


def open_run(
    config: TrainConfig, shards: Path, out_dir: Path, ranks: Ranks, speaking: SampleGenerator | None
) -> Run:
    """Refuse what cannot go well, build model and optimizer, and resume.

    Raises: ConfigError, ContractError.
    """
    preflight.require(preflight.refused_settings(config), config)
    require_world(config, ranks)
    rows = ShardRows(shards, "train")
    refused = preflight.refused_shards(
        rows.max_row_tokens, rows.modality, config.rows_per_step, config.max_steps
    )
    preflight.require(refused, config)

    plain_model = build_model(config).to(ranks.device)  # pyright: ignore[reportArgumentType]
    if ranks.is_main:
        plain_model.config.save_pretrained(out_dir / MODEL_FOLDER)
    compiled = choose_compile(config.compile, config.device)
    model = parallelise(
        plain_model,
        ranks,
        config.parallel,
        config.precision,
        compile=compiled,
        activation_checkpointing=config.activation_checkpointing,
    ).train()
    optimizer = build_optimizer(plain_model, config)
    guard = Guard(config.guard)
    progress = _resume(config, rows, out_dir, plain_model, optimizer, guard, ranks)
    log = RunLog(out_dir, progress.data_steps, config) if ranks.is_main else None
    if log:
        log.event("started", progress, workers=ranks.world, process=os.getpid())
    loader = StepLoader(
        rows,
        RowOrder(rows.modality, config.rows_per_step, config.seed),
        micro_batch_rows=config.micro_batch_rows,
        rank=ranks.rank,
        world=ranks.world,
        num_embeddings=plain_model.num_embeddings,
        loss_on=config.loss_on,
        least_width=rows.max_row_tokens if compiled else 0,
        pin_memory=ranks.device.type == "cuda",
    )
    writer = checkpoints.CheckpointWriter(
        out_dir / CHECKPOINT_FOLDER,
        ranks,
        keep=config.keep_checkpoints,
        keep_back_steps=config.guard.roll_back_steps,
        asynchronous=config.async_checkpoints,
    )
    return Run(
        config=config,
        out_dir=out_dir,
        ranks=ranks,
        rows=rows,
        plain_model=plain_model,
        model=model,
        optimizer=optimizer,
        new_rows_rate=NewRowsRate(optimizer, plain_model.model.embed_tokens.weight),
        guard=guard,
        progress=progress,
        loader=loader,
        writer=writer,
        observer=Observer(config, plain_model, optimizer, rows, loader, guard, ranks, log),
        log=log,
        speaking=speaking,
    )


def require_world(config: TrainConfig, ranks: Ranks) -> None:
    """Refuse to run with another number of processes than configured.

    Raises: ConfigError.
    """
    if ranks.world != config.workers:
        raise ConfigError(
            f"{ranks.world} processes run, but train.workers is {config.workers}",
            "workers x micro_batch_rows x accumulation_steps is the batch, which would change",
            f"Start {config.workers} processes, or set train.workers: {ranks.world}.",
        )


def _resume(
    config: TrainConfig,
    rows: ShardRows,
    out_dir: Path,
    model: PackedLlama,
    optimizer: torch.optim.Optimizer,
    guard: Guard,
    ranks: Ranks,
) -> checkpoints.Progress:
    """Load the newest whole checkpoint, the one that rank 0 finds, on every rank."""
    folder = out_dir / CHECKPOINT_FOLDER
    found = rollback.resume_point(folder, say) if ranks.is_main else None
    steps = ranks.from_main(found[0].progress.steps if found else -1)
    if steps < 0:
        return checkpoints.Progress(0, 0, 0, rows.fingerprint, config.rows_per_step)
    checkpoint, guard_state = found or rollback.at_steps(folder, steps)
    checkpoints.require_same_data(
        checkpoint, rows.fingerprint, config.rows_per_step, config.resume_on_other_shards
    )
    state, found_random_state = checkpoints.load(checkpoint.path, model, optimizer, ranks)
    guard.load_state_dict(guard_state or state["guard"])
    if ranks.is_main:
        if not found_random_state:
            say("the world size has changed: random states start from the seed")
        say(f"resuming after step {steps} from {checkpoint.path}")
    return replace(checkpoint.progress, shards=rows.fingerprint)
