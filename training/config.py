"""The trainer's part of `pipeline.yaml`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from koe.settings import PathOrName, Strict
from training.refusals import REFUSALS
from training.sections import (
    AdapterConfig,
    EarlyStoppingConfig,
    EvaluationConfig,
    GuardConfig,
    NewRowsConfig,
    RateTestConfig,
    TinyModelConfig,
)

# Former path of a key below `train.` -> its present name; see `koe/renamed.py`.
RENAMED = {"guard.least_deviation": "min_deviation"}


def leaf_settings(model: type[Strict], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the settings of a section and of those below it, by their dotted path."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
            yield from leaf_settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


class TrainConfig(Strict):
    """How to train on the shards. The defaults are the published recipe's cure.

    64 sequences per step = workers 8 x micro_batch_rows 2 x accumulation_steps 4.
    """

    launcher: Literal["ray", "inline"] = "ray"
    """ray: Ray Train; inline: one worker in this process."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Device to train on."""
    workers: int = Field(default=8, ge=1)
    """Number of processes, one per GPU."""
    min_workers: int | None = Field(default=None, ge=1)
    """Fewest processes to go on with after nodes were lost (Ray only), each with more micro-batches,
    so that a step keeps its rows; numbers that do not divide them are not used. null: workers."""
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """null: 1 with a GPU; on CPUs, an equal share of the machine."""
    max_worker_failures: int = Field(default=3, ge=0)
    """Restarts from the last checkpoint when workers die (Ray only)."""
    parallel: Literal["fsdp", "ddp"] = "fsdp"
    """fsdp: weights, gradients and moments are sharded (FSDP2); ddp: replicated."""
    compile: bool | None = None
    """torch.compile every layer, which needs a C compiler; null: on CUDA only."""
    attention: Literal["auto", "varlen", "mask"] = "auto"
    """auto: varlen; mask: the plain one that varlen must equal."""
    loss_kernel: Literal["auto", "chunked", "plain"] = "auto"
    """auto: chunked; plain: holds all logits, for comparison."""
    base_model: PathOrName | None = Field(default="meta-llama/Llama-3.2-3B", validate_default=True)
    """Name on the Hugging Face hub, or a folder; null: `tiny`, random weights."""
    tiny: TinyModelConfig = TinyModelConfig()
    new_rows: NewRowsConfig = NewRowsConfig()
    adapter: AdapterConfig | None = None
    """What is trained beside the base model's weights; null: these weights themselves, all of them."""
    precision: Literal["bf16", "fp32", "fp16"] = "bf16"
    """Precision of compute; fp16 is refused unless allowed."""
    master_weights: Literal["fp32", "bf16"] = "fp32"
    """Precision of the weights that are updated; bf16 is refused unless allowed."""
    allow: list[Literal[*REFUSALS]] = Field(default=[])  # pyright: ignore[reportInvalidTypeForm]
    """Names of refused settings to train with anyway."""
    loss_on: Literal["all", "response"] = "all"
    """response: only what follows start_of_ai is predicted."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared log normaliser; 1e-4 to 1e-5 where it is used."""
    micro_batch_rows: int = Field(default=2, ge=1)
    """Rows per worker and micro-batch."""
    accumulation_steps: int = Field(default=4, ge=1)
    """Micro-batches per step."""
    max_steps: int = Field(default=100_000, ge=1)
    """Steps of the run; the schedule ends at the last one."""
    # Rows that are read four times teach about as much as new ones, and after forty times nothing
    # more (Muennighoff et al., Scaling Data-Constrained Language Models, 2023).
    max_epochs: float = Field(default=10.0, gt=0)
    """How often max_steps may read every row; a longer run is refused unless allowed."""
    max_hours: float | None = Field(default=None, gt=0)
    """Hours after which training stops with a checkpoint and the exit code 75, to be gone on with
    by the same command; null: no limit. Leave room for a step, an evaluation and a checkpoint."""
    # The public report (canopyai/Orpheus-TTS issue 78) says the rate was "lowered from 5e-5 to
    # 6e-5", which contradicts itself: 6e-5 is higher. The default stays at the stated start.
    learning_rate: float = Field(default=5e-5, gt=0)
    """Highest learning rate, reached after the warm-up."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Course of the rate after the warm-up: cosine and linear fall to the last step; wsd stays and
    falls linearly at the end; constant stays."""
    min_learning_rate_share: float = Field(default=0.1, ge=0, le=1)
    """Share of learning_rate left in the last step, but for constant."""
    decay_share: float = Field(default=0.2, gt=0, le=1)
    """wsd: share of max_steps in which the rate falls."""
    warmup_steps: int | None = Field(default=10_000, ge=0)
    """Steps in which the rate rises; 0 is refused unless allowed. null: warmup_share says it."""
    warmup_share: float | None = Field(default=None, ge=0, le=1)
    """Share of max_steps in which the rate rises, in place of warmup_steps."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay of the matrices between the layers."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm in every step."""
    loss_chunk_tokens: int = Field(default=1024, ge=1)
    """Tokens whose logits exist at the same time."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, slower."""
    checkpoint_every_steps: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=3, ge=1)
    """Newest checkpoints kept, besides one to roll back to."""
    keep_best: bool = True
    """Also keep the checkpoint of the lowest validation loss; it must be written at a step that is
    evaluated."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Also keep a checkpoint every so many steps for good; null: none."""
    keep_weights_only: bool = False
    """Reduce those two kinds to their weights when nothing else keeps them: a third of the size.
    They can be exported, but no run can go on from them."""
    async_checkpoints: bool = True
    """true: written while training goes on; false: training waits."""
    guard: GuardConfig = GuardConfig()
    rate_test: RateTestConfig = RateTestConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log_every_steps: int = Field(default=1, ge=1)
    """Steps between lines on the console and in TensorBoard; metrics.jsonl has all."""
    monitor_every_steps: int = Field(default=10, ge=1)
    """Steps between norms of weights and updates, which cost a pass over both."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Dense BF16 peak of a GPU; null: by its name, if known."""
    mirror_every_seconds: float = Field(default=60.0, gt=0)
    """Seconds between copies of the logs of a run directory on an object store; events, evaluations
    and checkpoints copy them at once."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project too; wandb must be installed."""
    resume_on_other_shards: bool = False
    """Continue a checkpoint even if the shards have changed since."""
    resume_with_changes: list[str] = Field(default=[])
    """Settings below `train.` that may differ from the checkpoint's even where the order of the rows
    breaks or the learning rate leaps, such as max_steps."""
    shard_cache_gigabytes: float = Field(default=64.0, gt=0)
    """Room in $KOE_CACHE, on each machine, for shards of a run directory on an object store. A run
    that reads its shards more than once needs room for all of them."""
    early_stopping: EarlyStoppingConfig | None = None
    """null: the run goes on to max_steps."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Also keep an exponential moving average of the weights, in FP32, that each step moves by 1 -
    ema_decay of the way; faster in the first steps. null: none."""
    seed: int = 0
    """Seed of new rows and of later epochs' order."""

    @field_validator("attention", mode="before")
    @classmethod
    def _without_flex(cls, attention: object) -> object:
        if attention == "flex":
            raise ValueError("flex is no longer offered, as varlen does its work; set it to auto")
        return attention

    @field_validator("resume_with_changes")
    @classmethod
    def _known_settings(cls, names: list[str]) -> list[str]:
        known = dict(leaf_settings(cls))
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{name} is no setting of train{hint}")
        return names

    @model_validator(mode="before")
    @classmethod
    def _share_instead_of_default_steps(cls, data: Any) -> Any:
        """Let a warmup_share stand alone, without warmup_steps: null beside it."""
        if isinstance(data, dict) and data.get("warmup_share") is not None:
            return {"warmup_steps": None, **data}
        return data

    @model_validator(mode="after")
    def _one_warmup(self) -> TrainConfig:
        if (self.warmup_steps is None) == (self.warmup_share is None):
            raise ValueError(
                "exactly one of warmup_steps and warmup_share must be set; set the other to null"
            )
        return self

    @model_validator(mode="after")
    def _something_to_stop_by(self) -> TrainConfig:
        if self.early_stopping and not self.evaluation.every_steps:
            raise ValueError("early_stopping needs evaluation.every_steps, which is 0")
        return self

    @property
    def num_warmup_steps(self) -> int:
        """Steps in which the rate rises, however they are set."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.ceil((self.warmup_share or 0.0) * self.max_steps)

    @model_validator(mode="after")
    def _min_of_workers(self) -> TrainConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        return self

    @property
    def worlds(self) -> tuple[int, ...]:
        """The numbers of processes that may train, ascending: each takes equally many micro-batches."""
        micro_batches = self.workers * self.accumulation_steps
        least = self.min_workers or self.workers
        return tuple(n for n in range(least, self.workers + 1) if micro_batches % n == 0)

    @property
    def rows_per_step(self) -> int:
        """Rows that one optimizer step sees, over all workers and micro-batches."""
        return self.workers * self.micro_batch_rows * self.accumulation_steps
