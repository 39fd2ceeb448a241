"""The weights of a checkpoint as a model in memory, and the proof that they can be used."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

from koe.errors import ConfigError, ContractError
from koe.vocabulary import NUM_EMBEDDINGS
from training.adapter import merged_weights
from training.checkpoint.reader import load_weights
from training.config import TrainConfig
from training.model.llama import PackedLlama, build_model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def read_model_config(path: Path) -> LlamaConfig:
    """Read the config.json that a run saves when it starts.

    Raises: ConfigError when it cannot be read or the model lacks Orpheus' ids.
    """
    try:
        found = LlamaConfig.from_json_file(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the shape of the model cannot be read from {path}",
            str(error),
            "It is written when training starts, so `koe train` with the same config restores it.",
        ) from error
    if found.vocab_size < NUM_EMBEDDINGS:
        raise ConfigError(
            f"the model has {found.vocab_size:,} embeddings",
            f"an Orpheus model needs {NUM_EMBEDDINGS:,}",
        )
    found.use_cache = True  # off in training
    return found


def load_model(
    checkpoint_dir: Path,
    config: TrainConfig,
    model_config: LlamaConfig,
    dtype: torch.dtype,
    average: bool,
) -> LlamaForCausalLM:
    """Build the model on the CPU and load it; what the checkpoint lacks stays NaN.

    `average`: the averaged weights in place of the last ones. An adapter is added to the weights of
    `train.base_model`.
    """
    with no_init_weights():  # random weights of 3 B parameters would take a minute
        model = LlamaForCausalLM(model_config)
    model.to(dtype)  # pyright: ignore[reportArgumentType]
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    if config.adapter:
        model.load_state_dict(merged_weights(load_adapted(checkpoint_dir, config, average)))
    else:
        load_weights(checkpoint_dir, model, average)
    return model


def load_adapted(checkpoint_dir: Path, config: TrainConfig, average: bool) -> PackedLlama:
    """Build the base model with its adapter, and load the adapter. Raises: ConfigError."""
    model = build_model(config)
    load_weights(checkpoint_dir, model, average)
    return model


def require_finite(model: torch.nn.Module) -> None:
    """Assert that every weight is finite.

    Raises: ContractError naming the first that is not.
    """
    for name, parameter in model.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            raise ContractError(
                f"weight {name} has {bad} of {parameter.numel()} numbers that are not finite",
                "the checkpoint lacks them, or training has diverged",
                "Export an earlier checkpoint.",
            )
