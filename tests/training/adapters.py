"""A base model in a folder, and settings that train an adapter beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from tests.training.helpers import VOCABULARY, small_config
from tests.training.llamas import tiny_llama
from training.config import AdapterConfig, TrainConfig


def write_base(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a Llama with `VOCABULARY` embedding rows, so that it lacks those of Orpheus."""
    settings = {"hidden_size": 16, "intermediate_size": 24, **changes}
    tiny_llama(seed, **settings).save_pretrained(folder)
    return folder


def adapter_config(
    base: Path, adapter: dict[str, Any] | None = None, **changes: Any
) -> TrainConfig:
    settings = {"rank": 4, "alpha": 8, **(adapter or {})}
    return small_config(base_model=str(base), adapter=AdapterConfig(**settings), **changes)


def stir(model: torch.nn.Module) -> None:
    """Give every trained weight a value, since LoRA starts from products of zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)


def logits_of(model: LlamaForCausalLM) -> torch.Tensor:
    ids = torch.arange(40).view(2, 20) % VOCABULARY
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits
