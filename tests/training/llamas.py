"""A Llama of Hugging Face's, small enough to shard and save often, and its optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 512


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Its 63 rows of intermediate weights fall unevenly on two ranks."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 63,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "use_cache": False,
        **changes,
    }
    return LlamaForCausalLM(LlamaConfig(**settings)).train()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [{"params": parameters[1:]}, {"params": parameters[:1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2, fused=True)


def ids_of(number: int) -> torch.Tensor:
    """Return the micro-batch of that number: [1 row, 20 tokens]."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(VOCABULARY, (1, 20), generator=generator)


def loss_of(model: nn.Module, number: int) -> torch.Tensor:
    ids = ids_of(number)
    return model(input_ids=ids, labels=ids).loss


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of the tensor, put together again where it was sharded (collective)."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, or this rank's shard of it; no rank has to wait for another."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
