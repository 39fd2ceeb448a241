"""The small model and config that the trainer's tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.shards import write_shards
from training.config import TinyModelConfig, TrainConfig
from training.data import Batch, ShardRows, collate
from training.model import PackedCausalLM, build_model

VOCABULARY = 512


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster so, and runs that are compared bit by bit need equal threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "launcher": "inline",
        "device": "cpu",
        "workers": 1,
        "base_model": None,
        "tiny": TinyModelConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, vocab_size=VOCABULARY
        ),
        "precision": "fp32",
        "micro_batch_rows": 2,
        "accumulation_steps": 2,
        "max_steps": 6,
        "warmup_steps": 2,
        "learning_rate": 1e-2,
        "loss_chunk_tokens": 48,
        "checkpoint_every_steps": 2,
        **changes,
    }
    return TrainConfig(**settings)


def small_shards(folder: Path, **changes: Any) -> Path:
    return write_shards(folder, **{"vocabulary": VOCABULARY, **changes})


def batch_of(shards: Path, numbers: list[int]) -> Batch:
    rows = ShardRows(shards, "train")
    return collate([rows[number] for number in numbers], VOCABULARY)


def small_model(**changes: Any) -> PackedCausalLM:
    config = small_config(**changes)
    return PackedCausalLM(build_model(config), config.loss_chunk_tokens)


def gradients(model: PackedCausalLM) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_weights(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different
