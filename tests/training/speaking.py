"""A tiny model's configuration, and a document for it to speak."""

from __future__ import annotations

import numpy as np

from koe.vocabulary import SLOTS, audio_ids, speech_ids
from training.config import EvaluationConfig, TinyModelConfig, TrainConfig
from training.generation import Prompt
from training.model.distributed import single

ALONE = single("cpu")
CODES = np.random.default_rng(0).integers(0, 4096, 2 * SLOTS).astype(np.uint16)
DOCUMENT = speech_ids([11, 22, 33], CODES)
PROMPT = Prompt("by rote", tuple(DOCUMENT[: -2 * SLOTS - 2].tolist()))


def config_for(**changes) -> TrainConfig:
    tiny = TinyModelConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    return TrainConfig(device="cpu", base_model=None, precision="fp32", tiny=tiny, **changes)


def settings(**changes) -> EvaluationConfig:
    return EvaluationConfig(**{"max_frames": 3, "temperature": 0, **changes})


def whole(num_frames):
    return audio_ids(np.arange(num_frames * SLOTS, dtype=np.uint16)).tolist()
