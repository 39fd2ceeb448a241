"""Speech from fixed prompts: generated, and checked for the slot grammar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig

from koe.errors import ConfigError
from koe.schema import SPEECH
from koe.vocabulary import (
    CODEBOOK_SIZE,
    END_OF_SPEECH,
    FIRST_AUDIO,
    NUM_EMBEDDINGS,
    PAD,
    SLOTS,
    START_OF_HUMAN,
    START_OF_SPEECH,
    codes_of,
)
from training.config import EvaluationConfig
from training.data.shard_rows import ShardRows
from training.data.shard_summary import MODALITY_BIT
from training.evaluation import eval_mode
from training.listening import Listener
from training.model.distributed import Ranks
from training.model.llama import PackedLlama

# The lowest value that Orpheus calls stable (canopyai/Orpheus-TTS, README.md).
REPETITION_PENALTY = 1.1


@dataclass(frozen=True)
class Prompt:
    """The beginning of a sample that speech is generated for; `ids` end with start_of_speech."""

    name: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Speech:
    """Token ids generated for a prompt, including end_of_speech if it was generated."""

    prompt: Prompt
    ids: list[int]


@dataclass(frozen=True)
class Grammar:
    """How many generated frames are valid: slot k of a valid frame holds an id of slot k."""

    frames: int  # an incomplete last frame counts, and is not valid
    valid_frames: int
    valid_share: float  # 0 without frames
    ended: bool  # whether end_of_speech was generated


class Decoder(Protocol):
    """Turns SNAC codes (uint16 [7 frames]) into audio (float32 [samples], 24 kHz).

    `label` names the codec's weights; it is UNTRAINED where the audio can only be noise.
    """

    @property
    def label(self) -> str: ...

    def __call__(self, flat_codes: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class SampleGenerator:
    """Prompts besides those of the validation split, how to decode the speech, and what listens to
    it; picklable."""

    prompts: tuple[Prompt, ...] = ()
    decoder: Decoder | None = None
    listener: Listener | None = None


def validation_prompts(rows: ShardRows, count: int) -> list[Prompt]:
    """Take the prompts of the first `count` distinct speech documents, named by their ids.

    Later parts of a split document have no prompt and are left out.
    """
    found: dict[str, Prompt] = {}
    for number in np.flatnonzero(rows.modality & MODALITY_BIT[SPEECH]).tolist():
        if len(found) >= count:
            break
        row = rows[number]
        stops = np.cumsum(row.document_lengths)
        for place, name in enumerate(row.document_ids):
            ids = row.input_ids[stops[place] - row.document_lengths[place] : stops[place]]
            starts = np.flatnonzero(ids == START_OF_SPEECH)
            has_prompt = row.document_parts[place] == 0 and ids[0] == START_OF_HUMAN and len(starts)
            if row.document_modalities[place] == SPEECH and has_prompt:
                found.setdefault(name, Prompt(name, tuple(ids[: starts[0] + 1].tolist())))
    return list(found.values())[:count]


def generate(
    model: nn.Module,
    prompts: Sequence[Prompt],
    settings: EvaluationConfig,
    seed: int,
    ranks: Ranks,
    precision: AbstractContextManager[Any] | None = None,
) -> list[Speech]:
    """Speak all prompts at once, up to end_of_speech or `settings.max_frames` frames each.

    Every rank must call it with the same prompts and seed. Weights, random states, the model's mode
    and its settings do not change. Raises: ConfigError for a model without Orpheus' ids.
    """
    if not prompts:
        return []
    longest = max(len(prompt.ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), PAD)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
        attention_mask[row, longest - len(prompt.ids) :] = 1
    with eval_mode(model, ranks.device) as plain, _speaking(plain), precision or nullcontext():
        if plain.num_embeddings < NUM_EMBEDDINGS:
            raise ConfigError(
                f"the model has {plain.num_embeddings:,} embeddings",
                f"generating speech needs {NUM_EMBEDDINGS:,}",
                "Set train.evaluation.prompts: 0 and train.evaluation.texts: [].",
            )
        torch.manual_seed(seed)
        generated = plain.generate(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids=input_ids.to(ranks.device),
            attention_mask=attention_mask.to(ranks.device),
            generation_config=_sampling(settings),
            # A rank whose logits differ in the last bit may end earlier, and must not stop then.
            synced_gpus=ranks.world > 1 and isinstance(plain, FSDPModule),
        )
    spoken = generated[:, longest:].tolist()
    return [Speech(p, _until_end(ids)) for p, ids in zip(prompts, spoken, strict=True)]


def _sampling(settings: EvaluationConfig) -> GenerationConfig:
    warm: dict[str, Any] = {}
    if settings.temperature > 0:  # top_k off, as in Orpheus' own engine; it would be 50
        warm = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return GenerationConfig(
        do_sample=bool(warm),
        **warm,
        repetition_penalty=REPETITION_PENALTY,
        max_new_tokens=settings.max_frames * SLOTS,
        eos_token_id=END_OF_SPEECH,
        pad_token_id=PAD,
        use_cache=True,
    )


@contextmanager
def _speaking(plain: PackedLlama) -> Iterator[None]:
    """Prepare a model in training for generation, and undo it.

    Compiled layers would be compiled again for each length of the growing cache, so they run
    uncompiled. A sharded model would gather all weights for every token, so they stay gathered
    until `eval_mode` ends.
    """
    sharded = [
        module
        for module in plain.modules()
        # Never the root: its flag is only cleared by the first forward pass.
        if module is not plain and isinstance(module, FSDPModule) and _reshards(module)
    ]
    with ExitStack() as undo:
        for module in sharded:
            module.set_reshard_after_forward(False, recurse=False)
            undo.callback(module.set_reshard_after_forward, True, recurse=False)
        with torch.compiler.set_stance("force_eager"):
            yield


def _reshards(module: FSDPModule) -> bool:
    group = module._get_fsdp_state()._fsdp_param_group  # torch 2.11 has no public accessor
    return group is not None and group._reshard_after_forward


def _until_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(END_OF_SPEECH) + 1] if END_OF_SPEECH in ids else ids


def grammar(ids: Sequence[int]) -> Grammar:
    """Check what was generated after start_of_speech, up to end_of_speech."""
    audio, ended = _audio(ids)
    frames, valid = -(-len(audio) // SLOTS), int(_valid_frames(audio).sum())
    return Grammar(frames, valid, valid / frames if frames else 0.0, ended)


def valid_codes(ids: Sequence[int]) -> np.ndarray:
    """Return the codes of the longest prefix of valid frames, uint16 [7 frames]."""
    audio, _ = _audio(ids)
    valid = _valid_frames(audio)
    num_frames = len(valid) if valid.all() else int(valid.argmin())
    return codes_of(audio[: num_frames * SLOTS])


def _audio(ids: Sequence[int]) -> tuple[np.ndarray, bool]:
    """Return the ids before end_of_speech, and whether it was generated."""
    array = np.asarray(ids, np.int64)
    ends = np.flatnonzero(array == END_OF_SPEECH)
    return (array[: ends[0]], True) if len(ends) else (array, False)


def _valid_frames(audio: np.ndarray) -> np.ndarray:
    frames = audio[: len(audio) // SLOTS * SLOTS].reshape(-1, SLOTS)
    slots = (frames - FIRST_AUDIO) // CODEBOOK_SIZE  # text and control ids give numbers below 0
    return (slots == np.arange(SLOTS)).all(axis=1)
