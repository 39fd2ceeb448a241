"""The sections below `train` in `pipeline.yaml`; `config.py` composes them."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from koe.settings import PathOrName, Strict

# Matrices of a Llama's layers that an adapter can stand beside.
Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


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
