"""What is seen of each step, early: split losses, norms, speed, and the guard's events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from training.checkpoint.writer import Progress
from training.config import TrainConfig
from training.data.batches import Batch
from training.data.loader import StepLoader
from training.data.shard_rows import ShardRows
from training.guard import Action, Guard, Verdict
from training.metrics import RunLog
from training.model.distributed import Ranks
from training.model.llama import PackedLlama
from training.model.optim import new_rows_factor
from training.monitor import (
    document_losses,
    flops_per_token,
    peak_flops,
    row_norms,
    split_by_modality,
    split_losses,
    update_ratios,
)
from training.step import StepResult

_WORST_DOCUMENTS = 32


class Observer:
    """Writes the row of each step and the events, from numbers that all ranks gather."""

    def __init__(
        self,
        config: TrainConfig,
        model: PackedLlama,
        optimizer: torch.optim.Optimizer,
        rows: ShardRows,
        loader: StepLoader,
        guard: Guard,
        ranks: Ranks,
        log: RunLog | None,
    ) -> None:
        self._config, self._model, self._optimizer = config, model, optimizer
        self._rows, self._loader, self._guard = rows, loader, guard
        self._ranks, self._log = ranks, log
        num_parameters = sum(p.numel() for p in model.parameters())
        self._flops = flops_per_token(model.config, num_parameters, rows.max_row_tokens)
        name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
        self._peak = peak_flops(name, config.peak_tflops)

    def took(
        self,
        progress: Progress,
        verdict: Verdict,
        result: StepResult,
        batches: Sequence[Batch],
        gradient_norm: float,
        rate: float,
        seconds: float,
        waited: float,
    ) -> None:
        """Write down a step that is over; called on all ranks."""
        norms = self._norms(progress, rate) if verdict.action.applies else {}
        if verdict.action is not Action.ACCEPT:
            self._verdict(progress, verdict, result, batches, gradient_norm)
        if self._log:
            row = self._row(progress, verdict, result, gradient_norm, rate, seconds, waited)
            self._log.step(row | norms)

    def event(self, kind: str, progress: Progress, **details: Any) -> None:
        """Write down an event that belongs to no batch."""
        if self._log:
            self._log.event(kind, progress, **details)

    def _row(
        self,
        progress: Progress,
        verdict: Verdict,
        result: StepResult,
        gradient_norm: float,
        rate: float,
        seconds: float,
        waited: float,
    ) -> dict[str, Any]:
        by_source, by_slot = split_losses(result.sums, self._rows.sources)
        speed = result.tokens / seconds
        peak = self._peak * self._ranks.world if self._peak else None
        mfu = [speed * flops / peak if peak else None for flops in self._flops]
        return {
            "step": progress.steps,
            "data_step": progress.data_steps,
            "action": _KIND[min(verdict.action, Action.SKIP)],
            "loss": result.loss,
            "loss_by_modality": split_by_modality(result.sums, self._rows.source_modality),
            "loss_by_source": by_source,
            "loss_by_slot": by_slot,
            "gradient_norm": gradient_norm,
            "clipped_to": min(
                gradient_norm,
                self._config.max_gradient_norm,
                verdict.clip_to or self._config.max_gradient_norm,
            ),
            "learning_rate": rate,
            "rate_factor": self._guard.rate_factor,
            "limits": {
                "loss": verdict.limits.loss,
                "gradient_norm": verdict.limits.gradient_norm,
                "clip": verdict.limits.clip,
            },
            "largest_logit": result.largest_logit,
            "tokens": result.tokens,
            "total_tokens": progress.tokens,
            "tokens_per_second": speed,
            "seconds": seconds,
            "data_wait_seconds": waited,
            "mfu_full": mfu[0],
            "mfu_causal": mfu[1],
        }

    def _norms(self, progress: Progress, rate: float) -> dict[str, Any]:
        if progress.steps % self._config.monitor_every_steps:
            return {}
        return {
            "update_ratio": update_ratios(
                self._model,
                self._optimizer,
                rate,
                self._ranks,
                new_rows_factor=new_rows_factor(progress.steps - 1, self._config),
            ),
            "row_norms": row_norms(self._model, self._ranks),
        }

    def _verdict(
        self,
        progress: Progress,
        verdict: Verdict,
        result: StepResult,
        batches: Sequence[Batch],
        gradient_norm: float,
    ) -> None:
        gathered = self._ranks.gather_objects(self._documents(progress, result, batches))
        if not self._log or gathered is None:
            return
        documents = [document for of_rank in gathered for document in of_rank]
        rows: dict[int, list[str]] = {}
        for document in documents:
            rows.setdefault(document["row"], []).append(document["id"])
        numbers = sorted(rows)
        worst = sorted(
            (document for document in documents if document["loss"] is not None),
            key=lambda d: -d["loss"] if math.isfinite(d["loss"]) else -math.inf,
        )
        self._log.event(
            _KIND[verdict.action],
            progress,
            reason=verdict.reason,
            loss=result.loss,
            gradient_norm=gradient_norm,
            rate_factor=self._guard.rate_factor,
            limits={"loss": verdict.limits.loss, "gradient_norm": verdict.limits.gradient_norm},
            rows=numbers,
            document_ids=[rows[number] for number in numbers],
            documents=worst[:_WORST_DOCUMENTS],
        )

    def _documents(
        self, progress: Progress, result: StepResult, batches: Sequence[Batch]
    ) -> list[dict[str, Any]]:
        """Describe this rank's documents of the batch that led to `progress`."""
        found = []
        numbers = self._loader.numbers(progress.data_steps - 1)
        for batch, losses, part in zip(batches, result.token_losses, numbers, strict=True):
            per_row = document_losses(losses.cpu(), batch.labels, batch.document_index)
            for number, of_row in zip(part, per_row, strict=True):
                row = self._rows[number]
                for place, (loss, tokens) in enumerate(of_row):
                    found.append(
                        {
                            "row": number,
                            "id": row.document_ids[place],
                            "source": row.document_sources[place],
                            "modality": row.document_modalities[place],
                            "tokens": tokens,
                            "loss": loss,
                        }
                    )
        return found


_KIND = {
    Action.ACCEPT: "accept",
    Action.CLIP: "clip",
    Action.SKIP: "skip",
    Action.LOWER_RATE: "lower_rate",
    Action.ROLL_BACK: "roll_back",
    Action.STOP: "stop",
}
