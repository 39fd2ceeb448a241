"""The small model and config that the trainer's tests share."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.shards import write_shards
from training import loop
from training.checkpoint.folder import open_store
from training.checkpoint.reader import load_checkpoint
from training.checkpoint.tensor_files import checkpoint_tensors
from training.config import EvaluationConfig, TinyModelConfig, TrainConfig
from training.data.batches import Batch, collate
from training.data.shard_rows import ShardRows
from training.model.average import WeightAverage
from training.model.distributed import single
from training.model.llama import PackedLlama, build_model
from training.model.optim import build_optimizer
from training.places import Place, beside

VOCABULARY = 512
# The `train` section of a pipeline.yaml for the smallest model that takes every id.
SMALLEST: dict[str, Any] = {
    "launcher": "inline",
    "device": "cpu",
    "workers": 1,
    "base_model": None,
    "tiny": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
    "precision": "fp32",
    "micro_batch_rows": 2,
    "accumulation_steps": 1,
    "warmup_steps": 1,
    "checkpoint_every_steps": 1,
    "allow": ["few_sequences"],
}


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
        "evaluation": EvaluationConfig(every_steps=0),
        "allow": ["few_sequences", "warmup_longer_than_run", "many_epochs"],
        **changes,
    }
    return TrainConfig(**settings)


def small_shards(folder: Path, **changes: Any) -> Path:
    return write_shards(folder, **{"vocabulary": VOCABULARY, **changes})


def batch_of(shards: Path, numbers: list[int]) -> Batch:
    rows = ShardRows(shards, "train")
    return collate([rows[number] for number in numbers], VOCABULARY, rows.sources)


def small_model(**changes: Any) -> PackedLlama:
    return build_model(small_config(**changes))


def gradients(model: PackedLlama) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def saved_tensors(out_dir: Place, steps: int, config: TrainConfig) -> dict[str, torch.Tensor]:
    """Read weights and moments of a run's checkpoint, by name, and averages if there are any."""
    model = build_model(config)
    optimizer = build_optimizer(model, config)
    average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
    before = torch.get_rng_state()
    with closing(open_store(beside(out_dir, "checkpoints"))) as store:
        load_checkpoint(store.fetch(steps), model, optimizer, single("cpu"), average)
    torch.set_rng_state(before)
    tensors = checkpoint_tensors(model, optimizer, average)
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same_weights(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


def poison(run, value):
    """Multiply a gradient from now on; the hook's handle takes it back."""
    weight = run.plain_model.model.layers[0].mlp.up_proj.weight
    return weight.register_hook(lambda gradient: gradient * value)


def spoil_batches(monkeypatch, bad):
    """Give the given batches gradients that are no numbers; return the batches as they come."""
    taken = []
    take = loop.take_step

    def take_step(run):
        data_step = run.progress.data_steps
        taken.append(data_step)
        hook = poison(run, float("nan")) if data_step in bad else None
        try:
            return take(run)
        finally:
            if hook:
                hook.remove()

    monkeypatch.setattr(loop, "take_step", take_step)
    return taken
