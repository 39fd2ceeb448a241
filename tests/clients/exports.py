"""Small models as `koe export` writes them, with real tokenizers and either kind of RoPE."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from koe.vocabulary import SLOTS, START_OF_AI, audio_ids, conversation_ids, speech_ids
from stages.text.saved_tokenizer import save_orpheus_tokenizer
from stages.text.tokenizer import load_tokenizer, text_tokenizer
from tests.training.test_export import CONFIG, save_tokenizer, write_checkpoint
from training.export.folder import export
from training.model.llama import PackedLlama

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500_000.0},
    # As Llama 3.2's, but with a first context so short that it acts within a few tokens.
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
FORMER_KEYS = ("rope_theta", "rope_scaling", "torch_dtype")
# What the speaking model has learnt: an answer in speech, and one in text.
SPOKEN = "Hello."
CODES = np.random.default_rng(1).integers(0, 4096, 5 * SLOTS).astype(np.uint16)
ASKED, ANSWERED = "What is a haiku?", "A short poem."


def model_with(rope: dict[str, Any], **changes: Any) -> PackedLlama:
    """Build a Llama of random weights whose attention depends on where a token stands."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 156_992,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_parameters": dict(rope),
        "tie_word_embeddings": True,
        **changes,
    }
    model = PackedLlama(LlamaConfig(**settings))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(20)  # otherwise all tokens are attended to alike
            layer.self_attn.k_proj.weight.mul_(20)
            layer.self_attn.v_proj.weight.mul_(5)
            layer.self_attn.o_proj.weight.mul_(5)
    return model


def learnt_documents() -> list[np.ndarray]:
    """Return the token ids of the two documents of the speaking model."""
    encoder = text_tokenizer(load_tokenizer("llama-models")).open()
    text, asked, answered = encoder.encode([SPOKEN, ASKED, ANSWERED])
    return [speech_ids(text, CODES), conversation_ids([(asked, answered)])]


def speaking_model() -> PackedLlama:
    """Train a small model until it knows two answers by heart."""
    model = model_with(ROPES["llama3"]).train()
    torch.nn.init.constant_(model.model.norm.weight, 30.0)  # so that few steps make it sure
    model.model.embed_tokens.requires_grad_(False)  # most of the work
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.0, fused=True)
    documents = learnt_documents()
    for _ in range(300):
        losses = [answer_loss(model, ids) for ids in documents]
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if max(loss.item() for loss in losses) < 0.001:
            model.requires_grad_(True)
            return model.eval()
    raise AssertionError(f"the model has not learnt its answers: {losses}")


def answer_loss(model: PackedLlama, document: np.ndarray) -> torch.Tensor:
    ids = torch.from_numpy(document).long()[None]
    labels = ids.clone()
    labels[:, : document.tolist().index(START_OF_AI) + 1] = -100
    return model(input_ids=ids, labels=labels).loss


def exported(folder: Path, model: PackedLlama, **changes: Any) -> Path:
    """Save a checkpoint of the model below `folder` and export it to `folder/model`."""
    checkpoint = write_checkpoint(folder / "train", model)
    settings: dict[str, Any] = {
        "model_config": folder / "train" / "model" / "config.json",
        "dtype": "fp32",
        "codec": "UNTRAINED",
        "save_tokenizer": save_tokenizer,
        **changes,
    }
    export(checkpoint, CONFIG, folder / "model", **settings)
    return folder / "model"


def write_exports(root: Path) -> None:
    """Write three exports below `root`, two of them also without the keys of former releases (`bare`).

    `llama3` is the speaking model with its tokenizer and GGUF file; `default` and `bf16` have no
    tokenizer, which takes the most time.
    """
    saver = partial(save_orpheus_tokenizer, load_tokenizer("llama-models"))
    exported(root / "llama3", speaking_model(), save_tokenizer=saver, gguf=True)
    exported(root / "default", model_with(ROPES["default"]))
    exported(root / "bf16", model_with(ROPES["default"]), dtype="bf16")
    for name in ("llama3", "default"):
        folder = root / name / "model"
        config = json.loads((folder / "config.json").read_text())
        for key in FORMER_KEYS:
            del config[key]
        bare = root / name / "bare"
        bare.mkdir()
        shutil.copy(folder / "model.safetensors", bare)
        (bare / "config.json").write_text(json.dumps(config))


def spoken_ids() -> list[int]:
    """Return the ids of what the speaking model says, without the end."""
    return audio_ids(CODES).tolist()
