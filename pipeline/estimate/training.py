"""The cost of training, computed from the model's shape: nothing of it can be measured beforehand."""

from __future__ import annotations

import math

import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from koe.vocabulary import NUM_EMBEDDINGS
from pipeline.config.models import PipelineConfig
from pipeline.estimate.track import StageEstimate
from training.adapter import has_peft, inject, trains_embeddings
from training.config import AdapterConfig, TrainConfig
from training.model.llama import VOCABULARY_MULTIPLE
from training.monitor import flops_per_token, num_frozen
from training.preflight import epochs, refused_length

_PEAK_TFLOPS = 989.0  # of an H100 in dense BF16, NVIDIA's data sheet
# Of it: one H200 with Orpheus-3B's shape reached 0.45 (docs/performance.md), without FSDP's
# exchanges, whose share nobody has measured.
_UTILISATION = 0.4
_RECOMPUTED = 4 / 3  # times the FLOPs, where every layer's forward pass is done twice

# Shapes of the models that are mostly trained on, known before they are downloaded: width, width of
# the MLP, layers, heads, their width, and whether embedding and head are one.
_SHAPES = {
    "Llama-3.2-1B": (2048, 8192, 16, 32, 64, True),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 128, True),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 128, False),
}


def estimate_training(config: PipelineConfig, shards: StageEstimate) -> StageEstimate:
    """Estimate training on `shards`; without hours where FLOPs do not tell the time."""
    train = config.train
    rows = float(train.max_steps * train.rows_per_step)
    kept = max(shards.totals["rows"] * (1 - config.interleave.validation_share), 1.0)
    length = (
        f"{train.max_steps:,} steps are {epochs(kept, train):.2f} epochs{_refused(kept, train)}"
    )
    hours, note = _gpu_hours(config, rows * config.interleave.max_row_tokens)
    return StageEstimate(
        stage="train",
        measured=0,
        seconds=0.0,
        amounts={},
        records=rows,
        totals={"tokens": rows * config.interleave.max_row_tokens},
        worker_hours=hours,
        cpu_hours=None if hours is None else 0.0,
        gpu_hours=hours,
        disk_bytes=0.0,
        note=f"{length}; {note}",
    )


def _refused(num_rows: float, train: TrainConfig) -> str:
    """Say whether training will be refused for its length."""
    if not [name for name in refused_length(num_rows, train) if name not in train.allow]:
        return ""
    return f", which is refused, being more than train.max_epochs {train.max_epochs:g}"


def _gpu_hours(config: PipelineConfig, tokens: float) -> tuple[float | None, str]:
    """Return the hours of one GPU, and what they assume or why they are not known."""
    train = config.train
    unknown = "their time is not known, since "
    if train.base_model is None:
        return None, f"{unknown}train.base_model is null, a model for trials"
    if train.device == "cpu" or train.precision == "fp32":
        setting = "device is cpu" if train.device == "cpu" else "precision is fp32"
        return None, f"{unknown}train.{setting}, whose speed depends on the machine"
    shape = _shape(train.base_model)
    if shape is None:
        return None, (
            f"{unknown}the shape of {train.base_model} is not known; its config.json tells: "
            f"hf download {train.base_model} config.json"
        )
    if train.adapter and not has_peft():
        return None, f"{unknown}the package peft, which train.adapter needs, is not installed"
    parameters, flops = _work(shape, config.interleave.max_row_tokens, train.adapter)
    flops *= _RECOMPUTED if train.activation_checkpointing else 1.0
    peak = train.peak_tflops or _PEAK_TFLOPS
    hours = tokens * flops / (_UTILISATION * peak * 1e12) / 3600
    hours_each = hours / train.workers
    return hours, (
        f"{hours_each:,.{1 if hours_each >= 1 else 4}f} h on {train.workers} GPU"
        f"{'' if train.workers == 1 else 's'}, not measured: "
        f"{flops / 1e9:.3g} GFLOP per token for {parameters / 1e9:.3g} B parameters at "
        f"{_UTILISATION:.0%} of {peak:g} TFLOP/s"
        f"{'' if train.peak_tflops else ', an H100'}"
    )


def _shape(name: str) -> LlamaConfig | None:
    """Find a model's shape on this machine or among those known; None if it is not a known Llama."""
    try:
        # A plan must not need the network, nor wait for it.
        found = AutoConfig.from_pretrained(name, local_files_only=True)
        return found if isinstance(found, LlamaConfig) else None
    except (OSError, ValueError):
        known = _SHAPES.get(name.rpartition("/")[2].removesuffix("-Instruct"))
    if known is None:
        return None
    hidden_size, intermediate_size, layers, heads, head_dim, tied = known
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=head_dim,
        tie_word_embeddings=tied,
    )


def _work(shape: LlamaConfig, row_tokens: int, adapter: AdapterConfig | None) -> tuple[int, float]:
    """Return parameters and FLOPs per token (causal attention) with Orpheus' vocabulary."""
    had = shape.vocab_size
    if shape.vocab_size < NUM_EMBEDDINGS:
        shape.vocab_size = math.ceil(NUM_EMBEDDINGS / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    with torch.device("meta"):
        model = LlamaForCausalLM(shape)
        if adapter:
            inject(model, adapter, trains_embeddings(adapter, had))
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, flops_per_token(shape, parameters, row_tokens, num_frozen(model))[1]
