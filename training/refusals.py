"""Settings that made the published run explode, or that waste one: their names, reasons, remedies."""

from __future__ import annotations

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
