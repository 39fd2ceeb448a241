"""The training loop: rows in, guarded optimizer steps, checkpoints out."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import ConfigError, ContractError, StageError
from training import checkpoint as checkpoints
from training.config import TrainConfig
from training.data import IGNORED, MODALITIES, Batch, ShardRows, StepLoader, rows_of_step
from training.distributed import Ranks
from training.metrics import MetricsLog, StepMetrics, say
from training.model import PackedCausalLM, build_model
from training.optim import build_optimizer, learning_rate, set_learning_rate

CHECKPOINT_FOLDER = "checkpoints"


@dataclass(frozen=True)
class StepLosses:
    """Losses and tokens of one step, over all ranks."""

    supervised: int
    loss: float
    by_modality: dict[str, float | None]
    tokens: int


class NotFinite(StageError):
    """Loss or gradient norm is not finite; all ranks raise it together, before the update."""


def require_precision(config: TrainConfig) -> None:
    """Refuse FP16.

    Raises: ConfigError.
    """
    if config.precision == "fp16":
        raise ConfigError(
            "train.precision: fp16 is refused",
            "its largest number is 65,504, and gradients and attention scores of this mix of text "
            "and speech pass it: the loss spikes and does not come back",
            "Set train.precision: bf16, which has the range of FP32, or fp32.",
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


def train(config: TrainConfig, shards: Path, out_dir: Path, ranks: Ranks) -> int:
    """Train to `max_steps`, going on from the newest checkpoint in `out_dir` if there is one.

    Returns the steps done. Raises: ConfigError, ContractError, StorageError before or between
    steps; NotFinite when loss or gradient norm is not finite, with weights as before the step.
    """
    require_precision(config)
    require_world(config, ranks)
    rows = ShardRows(shards, "train")
    language_model = PackedCausalLM(build_model(config), config.loss_chunk_tokens).to(ranks.device)
    optimizer = build_optimizer(language_model, config)
    progress = _resume(config, rows, out_dir, language_model, optimizer, ranks)
    if progress.steps >= config.max_steps:
        _say(ranks, f"nothing to train: {progress.steps} of {config.max_steps} steps are done")
        return progress.steps

    model = ranks.wrap(language_model).train()
    parameters = list(language_model.parameters())
    loader = StepLoader(
        rows,
        rows_a_step=config.rows_a_step,
        micro_batch_rows=config.micro_batch_rows,
        rank=ranks.rank,
        world=ranks.world,
        num_embeddings=language_model.num_embeddings,
    )
    with loader, _open_log(config, out_dir, progress, ranks) as log:
        if log:
            log.event("started", step=progress.steps, workers=ranks.world, process=os.getpid())
        for step in range(progress.steps, config.max_steps):
            began = time.perf_counter()
            batches = loader.batches(step)
            waited = time.perf_counter() - began

            rate = learning_rate(step, config)
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad(set_to_none=True)
            losses = accumulate_gradients(model, batches, ranks, config.precision)
            gradient_norm = nn.utils.get_total_norm(
                [p.grad for p in parameters if p.grad is not None]
            )

            # Nothing of the step has touched weights or moments yet, and all ranks see the same.
            finite = math.isfinite(losses.loss) and bool(torch.isfinite(gradient_norm))
            if not ranks.all(finite):
                _stop_not_finite(step, losses.loss, float(gradient_norm), rows, config, log)

            nn.utils.clip_grads_with_norm_(parameters, config.max_gradient_norm, gradient_norm)
            optimizer.step()

            progress = checkpoints.Progress(
                step + 1, progress.tokens + losses.tokens, rows.fingerprint, config.rows_a_step
            )
            seconds = time.perf_counter() - began
            if log:
                log.step(_metrics(progress, losses, float(gradient_norm), rate, seconds, waited))
            if (
                progress.steps % config.checkpoint_every_steps == 0
                or progress.steps == config.max_steps
            ):
                if log:
                    log.sync()
                checkpoints.save(
                    out_dir / CHECKPOINT_FOLDER,
                    progress,
                    language_model.llama,
                    optimizer,
                    ranks,
                    keep=config.keep_checkpoints,
                )
    return progress.steps


def accumulate_gradients(
    model: nn.Module, batches: Sequence[Batch], ranks: Ranks, precision: str
) -> StepLosses:
    """Add up the gradients of one step: of the mean over all supervised tokens of all ranks.

    The count is known before the first backward pass, so that every token weighs the same,
    however the rows fall into micro-batches and ranks. Raises: ContractError without any token.
    """
    counts = [sum(b.num_supervised for b in batches), sum(b.num_tokens for b in batches)]
    supervised, tokens = (int(value) for value in ranks.sums(counts))
    if not supervised:
        raise ContractError(
            "a step has no token to predict",
            "all its documents have one token",
            "Check the shards with `koe inspect`.",
        )
    # DDP divides the sum of the ranks' gradients by their number; this takes that back.
    scale = ranks.world / supervised
    sums = torch.zeros(1 + 2 * len(MODALITIES), dtype=torch.float64, device=ranks.device)
    for place, batch in enumerate(batches):
        batch = batch.to(ranks.device)
        with _synchronised(model, place == len(batches) - 1):
            with torch.autocast(
                ranks.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"
            ):
                loss, token_losses = model(
                    batch.input_ids, batch.labels, batch.position_ids, batch.document_index
                )
            (loss * scale).backward()
        sums += _sums_by_modality(token_losses, batch)
    total, *parts = ranks.sums(sums.tolist())
    by_modality = {
        name: parts[2 * i] / parts[2 * i + 1] if parts[2 * i + 1] else None
        for i, name in enumerate(MODALITIES)
    }
    return StepLosses(supervised, total / supervised, by_modality, tokens)


def _synchronised(model: nn.Module, last: bool):
    """Let DDP add gradients up over the ranks only in the last micro-batch of a step."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def _sums_by_modality(token_losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return float64 [loss, then loss and supervised tokens of each modality]."""
    losses, supervised = token_losses.double(), batch.labels != IGNORED
    sums = [losses.sum()]
    for index in range(len(MODALITIES)):
        chosen = supervised & (batch.modality == index)
        sums += [losses[chosen].sum(), chosen.sum().double()]
    return torch.stack(sums)


def _resume(
    config: TrainConfig,
    rows: ShardRows,
    out_dir: Path,
    model: PackedCausalLM,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
) -> checkpoints.Progress:
    """Load the newest whole checkpoint, the one that rank 0 finds, on every rank."""
    folder = out_dir / CHECKPOINT_FOLDER
    found = checkpoints.latest(folder, lambda m: _say(ranks, m)) if ranks.is_main else None
    steps = ranks.from_main(found.progress.steps if found else -1)
    if steps < 0:
        return checkpoints.Progress(0, 0, rows.fingerprint, config.rows_a_step)
    if found is None:
        found = checkpoints.read(checkpoints.step_folder(folder, steps))
    checkpoints.require_same_data(
        found, rows.fingerprint, config.rows_a_step, config.resume_on_other_shards
    )
    if not checkpoints.load(found.path, model.llama, optimizer, ranks):
        _say(ranks, "the world size has changed: random states start from the seed")
    _say(ranks, f"resuming after step {steps} from {found.path}")
    return found.progress


def _open_log(
    config: TrainConfig, out_dir: Path, progress: checkpoints.Progress, ranks: Ranks
) -> MetricsLog | nullcontext[None]:
    if not ranks.is_main:
        return nullcontext()
    return MetricsLog(out_dir, progress.steps, config.max_steps, config.log_every_steps)


def _stop_not_finite(
    step: int,
    loss: float,
    gradient_norm: float,
    rows: ShardRows,
    config: TrainConfig,
    log: MetricsLog | None,
) -> None:
    numbers = rows_of_step(step, config.rows_a_step, len(rows))
    if log:
        log.event(
            "not_finite",
            step=step + 1,
            loss=loss,
            gradient_norm=gradient_norm,
            rows=numbers,
            document_ids=[rows[number].document_ids for number in numbers],
        )
    raise NotFinite(
        f"step {step + 1} gave a loss of {loss} and a gradient norm of {gradient_norm}",
        "the weights or one of the step's rows drive the model out of range",
        f"The step was not applied; events.jsonl lists its rows ({numbers[0]} to {numbers[-1]}). "
        "Lower train.learning_rate or lengthen train.warmup_steps, and resume.",
        stage="train",
        unit=f"step {step + 1}",
    )


def _metrics(
    progress: checkpoints.Progress,
    losses: StepLosses,
    gradient_norm: float,
    rate: float,
    seconds: float,
    waited: float,
) -> StepMetrics:
    return StepMetrics(
        step=progress.steps,
        loss=losses.loss,
        loss_text=losses.by_modality["text"],
        loss_speech=losses.by_modality["speech"],
        gradient_norm=gradient_norm,
        learning_rate=rate,
        tokens=losses.tokens,
        total_tokens=progress.tokens,
        tokens_per_second=losses.tokens / seconds,
        seconds=seconds,
        data_wait_seconds=waited,
    )


def _say(ranks: Ranks, message: str) -> None:
    if ranks.is_main:
        say(message)
