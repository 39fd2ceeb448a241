"""The configuration files of an export, in the words of every client that reads them.

transformers has called things differently over time (huggingface/transformers, MIGRATION_GUIDE_V5.md):
before 5 it reads `rope_theta`, `rope_scaling` and `torch_dtype`, and passes over `rope_parameters` and
`dtype` without a word, so the base of RoPE would become 10,000. An export has both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, LlamaForCausalLM
from transformers.utils import CONFIG_NAME

from koe.vocabulary import END_OF_SPEECH, END_OF_TEXT, PAD, START_OF_TEXT
from training.generation import REPETITION_PENALTY

# What ends an answer: that of a spoken one, then that of a text.
ENDS = [END_OF_SPEECH, END_OF_TEXT]

# Sampling as in the examples of canopyai/Orpheus-TTS. vLLM and transformers take it from
# generation_config.json, and with it what ends an answer.
_GENERATION = {
    "bos_token_id": START_OF_TEXT,
    "eos_token_id": ENDS,
    "pad_token_id": PAD,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "repetition_penalty": REPETITION_PENALTY,
}


def prepare(model: LlamaForCausalLM) -> None:
    """Let the configurations that `save_pretrained` writes say how answers begin and end."""
    model.config.bos_token_id = START_OF_TEXT
    model.config.eos_token_id = ENDS
    model.generation_config = GenerationConfig(**_GENERATION)


def add_former_keys(folder: Path) -> None:
    """Write into config.json also the keys that transformers before 5 knows."""
    path = folder / CONFIG_NAME
    config = json.loads(path.read_text("utf-8"))
    text = json.dumps(config | former_keys(config), indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def former_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Say what `rope_parameters` and `dtype` say, in the keys of transformers before 5."""
    scaling = dict(config["rope_parameters"])
    theta = scaling.pop("rope_theta")
    is_scaled = scaling["rope_type"] != "default"
    return {
        "rope_theta": theta,
        "rope_scaling": scaling if is_scaled else None,
        "torch_dtype": config["dtype"],
    }
