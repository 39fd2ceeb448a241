"""What the trainer needs to generate speech: codec, prompts, tokenizer."""

from __future__ import annotations

import re

import numpy as np
import torch

from koe.errors import ConfigError
from koe.vocabulary import speech_ids
from pipeline.config.models import PipelineConfig
from pipeline.jobs.listening import listener, template_pattern
from stages.snac.codec import Codec, CodecSpec, resolve_codec
from stages.snac.weights import UNTRAINED
from stages.text.tokenizer import load_tokenizer, text_tokenizer
from training.generation import Prompt, SampleGenerator


class SnacDecoder:
    """Decodes generated codes on the CPU. Picklable: the model is opened at the first call."""

    def __init__(self, spec: CodecSpec) -> None:
        self.spec = spec
        self._codec: Codec | None = None

    def __reduce__(self):
        return SnacDecoder, (self.spec,)

    @property
    def label(self) -> str:
        return self.spec.label if self.spec.trained else UNTRAINED.upper()

    def __call__(self, flat_codes: np.ndarray) -> np.ndarray:
        """Decode uint16 [7 frames] to float32 [2048 frames] at 24 kHz.

        The process trains a model, so its random state and number of threads, both of which the
        codec sets, are restored. Raises: ConfigError, ContractError, StageError (see Codec).
        """
        threads = torch.get_num_threads()
        try:
            if self._codec is None:
                with torch.random.fork_rng(devices=[]):  # SNAC starts from random weights
                    self._codec = Codec.open(self.spec)
            return self._codec.decode(flat_codes, self.spec.seed)
        finally:
            torch.set_num_threads(threads)


def sample_generator(config: PipelineConfig) -> SampleGenerator | None:
    """Assemble the generator of speech at evaluations; None where nothing is to be generated.

    Raises: ConfigError when codec or tokenizer cannot be loaded, or a text does not fit the template.
    """
    settings = config.train.evaluation
    if not settings.every_steps or not (settings.prompts or settings.texts):
        return None
    snac = config.snac
    spec = resolve_codec(snac.weights, snac.sha256, snac.seed, "cpu")
    prompts = tuple(text_prompts(config))
    return SampleGenerator(prompts, SnacDecoder(spec), listener(config, spec.trained))


def text_prompts(config: PipelineConfig) -> list[Prompt]:
    """Lay out `train.evaluation.texts` as the tokenize stage does: SOH BOS text EOT EOH SOA SOS.

    Raises: ConfigError for a text that does not fit `tokenize.speech_prompt`.
    """
    texts = config.train.evaluation.texts
    if not texts:
        return []
    prompts = [spoken_text(text, config.tokenize.speech_prompt) for text in texts]
    encoder = text_tokenizer(load_tokenizer(config.tokenize.tokenizer)).open()
    no_codes = np.empty(0, np.uint16)
    return [
        Prompt(text, tuple(speech_ids(ids, no_codes)[:-2].tolist()))  # without EOS EOA
        for text, ids in zip(texts, encoder.encode(prompts), strict=True)
    ]


def spoken_text(text: str, template: str) -> str:
    """Fill a text into `tokenize.speech_prompt`.

    With a template that names {speaker}, a text must be the complete prompt, as in `Aiko: hello`.
    Raises: ConfigError for one that does not.
    """
    if "{speaker}" not in template:
        return template.format(text=text)
    if not re.fullmatch(template_pattern(template), text, re.DOTALL):
        example = template.format(speaker="SPEAKER", text=text)
        raise ConfigError(
            f"train.evaluation.texts contains {text!r}, which names no speaker",
            f"tokenize.speech_prompt is {template!r}",
            f"Write the complete prompt, for example {example!r}.",
        )
    return text
