"""The trainer's part of `pipeline.yaml`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from koe.settings import PathOrName, Strict

MIN_SEQUENCES = 64
MAX_ROW_TOKENS = 2048

# Settings that made the published run explode (canopyai/Orpheus-TTS issue 78), by the name that
# `train.allow` lets them through with: the reason and the remedy. `preflight.py` looks for them.
REFUSALS: dict[str, tuple[str, str]] = {
    "no_warmup": (
        "Adam's moments of the new audio rows are still noise when the full rate is used from the "
        "first step: the published run diverged after some hundred steps",
        "Set train.warmup_steps (10,000 in the cure), or train.warmup_share.",
    ),
    "warmup_longer_than_run": (
        "the run would end before its learning rate is reached, and none of it would be trained at "
        "the rate that was asked for",
        "Lower train.warmup_steps, or raise train.max_steps.",
    ),
    "many_epochs": (
        "every row would be read more than train.max_epochs times. A model learns little from a row "
        "after the fourth time, and in the end learns the rows by heart",
        "Lower train.max_steps (and train.warmup_steps with it), or add data and run `koe run --to "
        "interleave`; train.max_epochs is the bound.",
    ),
    "few_sequences": (
        f"a step of fewer than {MIN_SEQUENCES} sequences has a gradient too noisy for this rate: "
        "the published run had 2 and its gradient norm climbed",
        "Raise train.workers, micro_batch_rows or accumulation_steps: their product counts.",
    ),
    "long_rows": (
        f"rows of more than {MAX_ROW_TOKENS} tokens were part of the run that exploded; bounding "
        "them was part of the cure",
        f"Set interleave.max_row_tokens to {MAX_ROW_TOKENS} and write the shards again.",
    ),
    "fp16": (
        "its largest number is 65,504, and gradients and attention scores of this mix of text and "
        "speech pass it; no loss scaling is done here",
        "Set train.precision: bf16, which has the range of FP32, or fp32.",
    ),
    "bf16_master_weights": (
        "at a learning rate of 5e-5 an update is often smaller than half a BF16 step and is lost",
        "Set train.master_weights: fp32.",
    ),
    "single_modality_steps": (
        "a step of text alone or of speech alone pulls the shared weights one way and the next "
        "the other, as in the recipe that alternates whole batches",
        "Set interleave.ratio so that each step holds both, or raise the number of rows per step.",
    ),
}

# Matrices of a Llama's layers that an adapter can stand beside.
Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Former path of a key below `train.` -> its present name; see `koe/renamed.py`.
RENAMED = {"guard.least_deviation": "min_deviation"}


def leaf_settings(model: type[Strict], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the settings of a section and of those below it, by their dotted path."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
            yield from leaf_settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


class TinyModelConfig(Strict):
    """Shape of a Llama with random weights, for demos and tests."""

    hidden_size: int = 64
    """Width of the model."""
    intermediate_size: int = 192
    """Width of each layer's MLP."""
    num_hidden_layers: int = 2
    """Number of layers."""
    num_attention_heads: int = 4
    """Query heads of each layer."""
    num_key_value_heads: int = 2
    """Key and value heads of each layer."""
    vocab_size: int | None = Field(default=None, ge=2)
    """null: all Orpheus ids; a smaller one suits shards made for tests."""


class NewRowsConfig(Strict):
    """The embedding rows that the base model does not have: control ids and audio codes."""

    init: Literal["mean_cov", "per_codebook", "small_random"] = "per_codebook"
    """mean_cov: drawn from the mean and covariance of the old rows; per_codebook: the same, but
    rows of one slot share a part, and so do rows of one code of a codebook; small_random: drawn
    from N(0, 0.02)."""
    learning_rate_factor: float = Field(default=1.0, gt=0)
    """Learning rate of these rows divided by that of the rest."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Warm-up of these rows; null: the same as for the rest."""


class AdapterConfig(Strict):
    """LoRA (arXiv 2106.09685) through peft: the base model's weights stay as they are, and a product
    of two narrow matrices beside each of them is trained. The defaults are those of Orpheus'
    finetune/lora.py."""

    rank: int = Field(default=32, ge=1)
    """Columns of the one and rows of the other matrix."""
    alpha: float = Field(default=64, gt=0)
    """The product counts alpha / sqrt(rank) times, or alpha / rank times without
    rank_stabilised."""
    rank_stabilised: bool = True
    """Divide alpha by the root of the rank (arXiv 2312.03732)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of each adapter's inputs that is left out at random in training."""
    targets: list[Target] = Field(default=list(get_args(Target)), min_length=1)
    """Matrices of each layer that get an adapter."""
    train_embeddings: bool | None = None
    """Train the embedding and the head in full; null: only if the base model lacks Orpheus' ids,
    whose rows cannot be learnt otherwise."""


class GuardConfig(Strict):
    """When a step is clipped or skipped, and what follows from several skipped steps.

    Limits are in standard deviations from the median of the last accepted steps, estimated from
    their median absolute deviation; both are robust against the very spikes they look for.
    """

    enabled: bool = True
    """false: only a loss or gradient norm that is not finite stops the run."""
    window_steps: int = Field(default=128, ge=8)
    """Accepted steps that the limits are computed from."""
    clip_sigmas: float = Field(default=4.0, gt=0)
    """A gradient norm above this is clipped to the median."""
    skip_sigmas: float = Field(default=8.0, gt=0)
    """A step with a loss or gradient norm above this is skipped."""
    min_deviation: float = Field(default=0.02, gt=0)
    """Lower bound of the deviation, as a share of the median."""
    # A guess among all 156,938 ids has a loss of log(156,938) = 12: above 15 the model is far worse
    # than if it knew nothing. docs/stability.md: 30 let the spike of the exploding settings pass.
    max_loss: float = Field(default=15.0, gt=0)
    """Loss limit until the window is full."""
    max_gradient_norm: float = Field(default=1000.0, gt=0)
    """Limit of the gradient norm until the window is full."""
    within_steps: int = Field(default=64, ge=1)
    """Skips within this many batches count together."""
    lower_rate_after_skips: int = Field(default=3, ge=1)
    """Skips within within_steps, and since the last lowering, that lower the rate."""
    rate_factor: float = Field(default=0.5, gt=0, lt=1)
    """Factor by which each lowering multiplies the rate."""
    restore_rate_after_steps: int = Field(default=500, ge=1)
    """Accepted steps in a row that take one lowering back."""
    climb_factor: float = Field(default=5.0, gt=1)
    """The rate is also lowered when the median gradient norm reaches this multiple of its lowest
    value so far."""
    roll_back_after_skips: int = Field(default=6, ge=1)
    """Skips within within_steps that cause a rollback."""
    roll_back_steps: int = Field(default=100, ge=1)
    """Steps to go back at least; the next older checkpoint is loaded."""
    skip_data_steps: int = Field(default=200, ge=0)
    """Batches left out after the spike; PaLM left out 200 to 500."""
    max_rollbacks: int = Field(default=3, ge=0)
    """Rollbacks that are allowed; one more stops the run."""


class RateTestConfig(Strict):
    """`koe train --find-rate`: the rate rises exponentially while the loss is watched."""

    steps: int = Field(default=200, ge=20)
    """Steps from the lowest to the highest rate."""
    lowest_rate: float = Field(default=1e-7, gt=0)
    """Rate of the first step."""
    highest_rate: float = Field(default=1.0, gt=0)
    """Rate of the last step, which is not reached where the loss rises before."""
    max_rise: float = Field(default=1.1, gt=1)
    """The test stops once the smoothed loss is above this multiple of its lowest value."""

    @model_validator(mode="after")
    def _rising(self) -> RateTestConfig:
        if self.lowest_rate >= self.highest_rate:
            raise ValueError("lowest_rate must be below highest_rate")
        return self


class EvaluationConfig(Strict):
    """What is measured on the validation shards, and what is generated."""

    every_steps: int = Field(default=500, ge=0)
    """Steps between evaluations; 0: never."""
    max_rows: int = Field(default=256, ge=1)
    """Rows of the validation split that are used at most."""
    prompts: int = Field(default=3, ge=0)
    """Speech documents of the validation split whose text is spoken."""
    texts: list[str] = Field(default=[])
    """Further sentences that are spoken."""
    max_frames: int = Field(default=150, ge=1)
    """Frames of 85.3 ms that are generated at most."""
    temperature: float = Field(default=0.6, ge=0)
    """Temperature of generation; 0: always the likeliest token."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Share of the probability that is sampled from."""
    score_speech: bool = True
    """Score what is spoken with DNSMOS; not where the codec is untrained, which gives noise."""
    recogniser: PathOrName | None = None
    """Speech recogniser for transformers, a name on the Hugging Face hub or a folder: what it hears
    is compared with the prompt, as a character error rate; null: nothing is recognised."""


class EarlyStoppingConfig(Strict):
    """When a run stops because the loss on the validation shards does not fall any more."""

    evaluations: int = Field(ge=1)
    """Evaluations in a row without an improvement that end the run."""
    min_improvement: float = Field(default=0.0, ge=0)
    """Nats per token by which the loss must fall below the last improvement to count as one."""


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
