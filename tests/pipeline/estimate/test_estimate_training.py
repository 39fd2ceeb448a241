"""Training is estimated from the shape of the model that is trained, or said to be unknown."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from koe.vocabulary import NUM_EMBEDDINGS
from pipeline.config.load import load_config
from pipeline.config.models import PipelineConfig
from pipeline.estimate.track import StageEstimate
from pipeline.estimate.training import estimate_training
from tests.corpus import write_corpus
from training import adapter

SHARDS = StageEstimate("interleave", 9, 1.0, {}, 9, {"rows": 1000.0, "tokens": 9e5}, 1, 1, 0, 1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("training"))


def configured(corpus, **train: object) -> PipelineConfig:
    sets = {"device": "cuda", "workers": 8, "precision": "bf16", "max_steps": 1000, **train}
    overrides = [f"train.{key}={value}" for key, value in sets.items()]
    return load_config(corpus, [*overrides, "interleave.max_row_tokens=2048"])


def test_a_small_model_of_a_folder_has_its_own_cost(corpus, tmp_path):
    shape = LlamaConfig(
        vocab_size=NUM_EMBEDDINGS + 6, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    shape.save_pretrained(tmp_path)
    config = configured(corpus, base_model=tmp_path, peak_tflops=100)
    found = estimate_training(config, SHARDS)
    projections = 64 * 64 * 2 + 64 * 32 * 2  # query and output, key and value
    matrices = 2 * (projections + 3 * 64 * 128 + 2 * 64) + 64 + shape.vocab_size * 64
    flops = 6 * matrices + 6 * 2 * 64 * 2048
    tokens = 1000 * config.train.rows_per_step * 2048
    assert found.totals == {"tokens": tokens}
    assert found.gpu_hours == pytest.approx(tokens * flops / 40e12 / 3600, rel=1e-6)
    again = estimate_training(
        configured(corpus, base_model=tmp_path, peak_tflops=100, activation_checkpointing=True),
        SHARDS,
    )
    assert again.gpu_hours == pytest.approx(found.gpu_hours * 4 / 3)


def test_the_models_mostly_trained_on_are_known_before_they_are_downloaded(corpus):
    found = {
        name: estimate_training(configured(corpus, base_model=f"meta-llama/{name}"), SHARDS)
        for name in ("Llama-3.2-1B", "Llama-3.2-3B-Instruct", "Llama-3.1-8B")
    }
    # 3.21 B parameters and 28,736 more ids of 3072; 6 a parameter and 28 x 3072 x 2048 x 6
    assert "20.9 GFLOP per token for 3.3 B parameters" in found["Llama-3.2-3B-Instruct"].note
    assert "for 1.29 B parameters" in found["Llama-3.2-1B"].note
    assert "for 8.27 B parameters" in found["Llama-3.1-8B"].note
    hours = [item.gpu_hours for item in found.values()]
    assert hours == sorted(hours)
    assert "h on 8 GPUs, not measured" in found["Llama-3.1-8B"].note


def test_an_adapter_costs_less_than_all_weights(corpus, monkeypatch):
    """4 a parameter that is not trained: 2.82 B between the layers; 48.6 M more in the adapter."""
    adapted = configured(corpus, base_model="meta-llama/Llama-3.2-3B", adapter="{}")
    assert "15.5 GFLOP per token for 3.35 B parameters" in estimate_training(adapted, SHARDS).note
    monkeypatch.setattr(adapter.importlib.util, "find_spec", lambda name: None)
    assert (
        "peft, which train.adapter needs, is not installed"
        in estimate_training(adapted, SHARDS).note
    )


@pytest.mark.parametrize(
    ("train", "why"),
    [
        ({"base_model": "some/llama"}, "shape of some/llama is not.*hf download some/llama config"),
        ({"base_model": "null"}, "base_model is null"),
        ({"base_model": "meta-llama/Llama-3.2-3B", "device": "cpu"}, "device is cpu"),
        ({"base_model": "meta-llama/Llama-3.2-3B", "precision": "fp32"}, "precision is fp32"),
    ],
)
def test_what_is_not_known_is_not_guessed(corpus, train, why):
    found = estimate_training(configured(corpus, **train), SHARDS)
    assert (found.worker_hours, found.cpu_hours, found.gpu_hours) == (None, None, None)
    assert found.totals["tokens"] > 0
    assert all(part in found.note for part in why.split(".*"))


def test_epochs_are_those_of_the_rows_to_train_on(corpus):
    config = configured(corpus, base_model="null", workers=1, micro_batch_rows=4, max_steps=100)
    config = config.model_copy(
        update={"interleave": config.interleave.model_copy(update={"validation_share": 0.2})}
    )
    assert "100 steps are 0.50 epochs; " in estimate_training(config, SHARDS).note


@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        ({}, False),
        ({"max_epochs": 0.4}, True),
        ({"max_epochs": 0.4, "allow": "[many_epochs]"}, False),
    ],
)
def test_a_run_that_is_too_long_is_said_to_be_refused(corpus, changes, is_refused):
    config = configured(
        corpus, base_model="null", workers=1, micro_batch_rows=4, max_steps=100, **changes
    )
    note = estimate_training(config, SHARDS).note
    assert ("which is refused, being more than train.max_epochs 0.4" in note) is is_refused
