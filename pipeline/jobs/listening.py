"""What listens to the speech of evaluations: DNSMOS, and a recogniser that is told the prompt."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from koe.errors import ConfigError
from koe.vocabulary import CODEC_HZ, NUM_BASE_TEXT
from pipeline.config.models import PipelineConfig
from stages.audio.decode import resample
from stages.dnsmos.scorer import SCORER_HZ, DnsmosScorer, find_model
from stages.settings import Windows
from stages.text.tokenizer import load_tokenizer
from training.listening import Listener, Recogniser
from training.logs import SCORES


class SpeechScorer:
    """DNSMOS on the CPU. Picklable: the model is opened at the first call."""

    def __init__(self, model: str | None, windows: Windows) -> None:
        self._arguments = model, windows
        self._scorer: DnsmosScorer | None = None

    def __reduce__(self):
        return SpeechScorer, self._arguments

    def __call__(self, audio: np.ndarray) -> dict[str, float]:
        """Score float32 [samples] at 24 kHz. Raises: ConfigError, StageError."""
        model, windows = self._arguments
        if self._scorer is None:
            self._scorer = DnsmosScorer(find_model(model).path)
        scores = self._scorer.score(resample(audio, CODEC_HZ, SCORER_HZ), windows)
        return {name: getattr(scores, name) for name in SCORES}


class PromptText:
    """Reads what should be said after a prompt. Picklable: the tokenizer is loaded at the first call."""

    def __init__(self, tokenizer: str, template: str) -> None:
        self._arguments = tokenizer, template
        self._tokenizer = None

    def __reduce__(self):
        return PromptText, self._arguments

    def __call__(self, prompt_ids: Sequence[int]) -> str:
        """Decode the text of a prompt, without its speaker. Raises: ConfigError."""
        name, template = self._arguments
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(name)
        ids = [number for number in prompt_ids if number < NUM_BASE_TEXT]
        return spoken_part(str(self._tokenizer.decode(ids)), template)


def template_pattern(template: str) -> str:
    """Return a regular expression of the prompts that `tokenize.speech_prompt` makes."""
    return "".join(
        re.escape(literal) + {None: "", "text": "(?P<text>.+)"}.get(name, "(?:.+?)")
        for literal, name, _, _ in string.Formatter().parse(template)
    )


def spoken_part(prompt: str, template: str) -> str:
    """Return the text of a prompt that `template` made; all of it where the template does not fit."""
    found = re.fullmatch(template_pattern(template), prompt, re.DOTALL)
    return found["text"] if found else prompt


def listener(config: PipelineConfig, trained_codec: bool) -> Listener | None:
    """Assemble what listens at evaluations; None where nothing does, or there is only noise.

    Raises: ConfigError for a recogniser's folder that is not there.
    """
    settings = config.train.evaluation
    name = settings.recogniser
    if name and Path(name).is_absolute() and not Path(name).is_dir():
        raise ConfigError(
            f"train.evaluation.recogniser is {name}",
            "there is no such folder",
            "Correct it, name a model on the Hugging Face hub, or set it to null.",
        )
    if not trained_codec or not (settings.score_speech or name):
        return None
    score = SpeechScorer(config.score.model, config.score.windows)
    if name is None:
        return Listener(score)
    text_of = PromptText(config.tokenize.tokenizer, config.tokenize.speech_prompt)
    return Listener(score if settings.score_speech else None, Recogniser(name), text_of)
