"""What is recorded of each step: its row of metrics, and an event where the guard intervened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from training.checkpoint.manifest import Progress
from training.data.batches import Batch
from training.guard import Action, Verdict
from training.model.schedule import new_rows_factor
from training.monitor import (
    DocumentLoss,
    describe_documents,
    flops_per_token,
    num_frozen,
    peak_flops,
    row_norms,
    split_by_modality,
    split_losses,
    update_ratios,
    worst_first,
)
from training.run import Run
from training.step import StepResult
from training.stopping import Why

_WORST_DOCUMENTS = 32  # of an event


@dataclass(frozen=True)
class StepRecord:
    """A finished step, applied or not. The batches are this rank's, all else is of all ranks."""

    progress: Progress  # after the step
    verdict: Verdict
    result: StepResult
    batches: Sequence[Batch]
    gradient_norm: float  # before clipping
    clipped_to: float  # the norm after clipping, had the step been applied
    learning_rate: float
    seconds: float
    data_wait_seconds: float  # part of `seconds`: waiting for the batches
    asked: Why  # what a rank was asked to do meanwhile


class Observer:
    """Writes down each step; all ranks gather the numbers, rank 0 writes them."""

    def __init__(self, run: Run) -> None:
        self._run = run
        model = run.plain_model
        self._flops = flops_per_token(
            model.config,
            sum(parameter.numel() for parameter in model.parameters()),
            run.rows.max_row_tokens,
            num_frozen(model),
        )
        device = run.ranks.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self._peak_flops = peak_flops(name, run.config.peak_tflops)

    def record_step(self, step: StepRecord) -> None:
        """Write the step's row, and its event unless it was simply accepted; on all ranks."""
        norms = self._norms(step) if step.verdict.action.applies else {}
        if step.verdict.action is not Action.ACCEPT:
            self._write_event(step)
        if self._run.log:
            self._run.log.step(self._row(step) | norms)

    def _row(self, step: StepRecord) -> dict[str, Any]:
        run, result = self._run, step.result
        by_source, by_slot = split_losses(result.sums, run.rows.sources)
        tokens_per_second = result.tokens / step.seconds
        mfu_full, mfu_causal = self._utilisation(tokens_per_second)
        return {
            "step": step.progress.steps,
            "data_step": step.progress.data_steps,
            "action": min(step.verdict.action, Action.SKIP).label,
            "loss": result.loss,
            "loss_by_modality": split_by_modality(result.sums, run.rows.source_modality),
            "loss_by_source": by_source,
            "loss_by_slot": by_slot,
            "gradient_norm": step.gradient_norm,
            "clipped_to": step.clipped_to,
            "learning_rate": step.learning_rate,
            "rate_factor": run.guard.rate_factor,
            "limits": asdict(step.verdict.limits),
            "largest_logit": result.largest_logit,
            "tokens": result.tokens,
            "total_tokens": step.progress.tokens,
            "tokens_per_second": tokens_per_second,
            "seconds": step.seconds,
            "data_wait_seconds": step.data_wait_seconds,
            "mfu_full": mfu_full,
            "mfu_causal": mfu_causal,
        }

    def _utilisation(self, tokens_per_second: float) -> list[float | None]:
        """Return the model FLOPs utilisation with full and with causal attention counted."""
        if not self._peak_flops:
            return [None, None]
        peak = self._peak_flops * self._run.ranks.world
        return [tokens_per_second * flops / peak for flops in self._flops]

    def _norms(self, step: StepRecord) -> dict[str, Any]:
        run = self._run
        if step.progress.steps % run.config.monitor_every_steps:
            return {}
        return {
            "update_ratio": update_ratios(
                run.plain_model,
                run.optimizer,
                step.learning_rate,
                run.ranks,
                new_rows_factor=new_rows_factor(step.progress.steps - 1, run.config),
            ),
            "row_norms": row_norms(run.plain_model, run.ranks),
        }

    def _write_event(self, step: StepRecord) -> None:
        gathered = self._run.ranks.gather_objects(self._documents(step))
        if not self._run.log or gathered is None:
            return
        documents = [document for of_rank in gathered for document in of_rank]
        ids: dict[int, list[str]] = {}
        for document in documents:
            ids.setdefault(document.row, []).append(document.id)
        numbers = sorted(ids)
        worst = [d for d in worst_first(documents) if d.loss is not None][:_WORST_DOCUMENTS]
        limits = step.verdict.limits
        self._run.log.event(
            step.verdict.action.label,
            step.progress,
            reason=step.verdict.reason,
            loss=step.result.loss,
            gradient_norm=step.gradient_norm,
            rate_factor=self._run.guard.rate_factor,
            limits={"loss": limits.loss, "gradient_norm": limits.gradient_norm},
            rows=numbers,
            document_ids=[ids[number] for number in numbers],
            documents=[asdict(document) for document in worst],
        )

    def _documents(self, step: StepRecord) -> list[DocumentLoss]:
        """Describe this rank's documents of the step."""
        numbers = self._run.loader.numbers(step.progress.data_steps - 1)
        parts = zip(numbers, step.batches, step.result.token_losses, strict=True)
        return [
            document
            for part, batch, losses in parts
            for document in describe_documents(
                [self._run.rows[number] for number in part], batch, losses
            )
        ]
