"""Exports a checkpoint as a Hugging Face folder that Orpheus' inference can load."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights
from transformers.utils import CONFIG_NAME

from koe.atomic import sync
from koe.errors import ConfigError, ContractError, StorageError
from koe.vocabulary import END_OF_SPEECH, NUM_EMBEDDINGS, PAD, START_OF_TEXT
from training.adapter import merged_weights
from training.checkpoint.manifest import Progress, read_manifest
from training.checkpoint.reader import load_weights
from training.config import TrainConfig
from training.generation import REPETITION_PENALTY
from training.model.llama import PackedLlama, build_model
from training.places import Place, RemoteFolder, absolute, local_folder
from training.work_folder import WorkFolder

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

# Settings of Orpheus' inference: sampling as in the examples of canopyai/Orpheus-TTS. Its engine
# takes the end of speech from here, because vLLM reads generation_config.json.
GENERATION = {
    "bos_token_id": START_OF_TEXT,
    "eos_token_id": END_OF_SPEECH,
    "pad_token_id": PAD,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "repetition_penalty": REPETITION_PENALTY,
}


def export(
    checkpoint_dir: Path,
    config: TrainConfig,
    out: Place,
    *,
    model_config: Path,
    dtype: str,
    codec: str,
    average: bool = False,
    save_tokenizer: Callable[[Path], None],
) -> None:
    """Write the weights of one checkpoint as a folder for `AutoModelForCausalLM.from_pretrained`.

    `model_config` is the config.json that the run has saved (the base model's weights are only needed
    for an adapter), `codec` the label of the codec that made the shards, `average` whether the averaged weights
    are written in place of the last ones. `out` may be a URL. The folder is
    written completely or not at all; at a URL, config.json comes last. Raises: ConfigError when `out` is not empty or the model lacks Orpheus' ids;
    ContractError for weights that are missing or not finite; StorageError.
    """
    out = absolute(out)
    _require_free(out)
    shape = _read_model_config(model_config)
    model = _load(checkpoint_dir, config, shape, DTYPES[dtype], average)
    require_finite(model)
    model.generation_config = GenerationConfig(**GENERATION)
    card = _card(config, read_manifest(checkpoint_dir).progress, dtype, codec, Path(out).name)
    try:
        with _draft(out) as draft:
            model.save_pretrained(draft)
            save_tokenizer(draft)
            (draft / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{out} cannot be written", str(error), "Free or mount the disk and export again."
        ) from error


@contextmanager
def _draft(out: Place) -> Iterator[Path]:
    """Make a local folder that becomes `out` once it is complete, and is deleted otherwise."""
    folder = local_folder(out)
    if folder is None:
        work = WorkFolder()
        try:
            yield work.path
            _upload(work.path, RemoteFolder(str(out)))
        finally:
            work.close()
        return
    draft = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        mode = (draft / "README.md").stat().st_mode
        for path in draft.iterdir():
            path.chmod(mode)  # safetensors lets only the owner read its files
            sync(path)
        sync(draft)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync(folder.parent)


def _upload(folder: Path, remote: RemoteFolder) -> None:
    """Upload all files; without its config.json, which comes last, no library takes it for a model."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == CONFIG_NAME, path.name)):
        remote.upload(path, path.name)


def _require_free(out: Place) -> None:
    folder = local_folder(out)
    if folder is None:
        is_free = not RemoteFolder(str(out)).sizes()
    else:
        is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free:
        raise ConfigError(
            f"{out} already exists",
            "an export never overwrites anything",
            "Name another folder, or remove that one.",
        )


def _read_model_config(path: Path) -> LlamaConfig:
    try:
        found = LlamaConfig.from_json_file(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the shape of the model cannot be read from {path}",
            str(error),
            "It is written when training starts, so `koe train` with the same config restores it.",
        ) from error
    if found.vocab_size < NUM_EMBEDDINGS:
        raise ConfigError(
            f"the model has {found.vocab_size:,} embeddings",
            f"an Orpheus model needs {NUM_EMBEDDINGS:,}",
        )
    found.use_cache = True  # off in training
    return found


def load_adapted(checkpoint_dir: Path, config: TrainConfig, average: bool) -> PackedLlama:
    """Build the base model with its adapter, and load the adapter. Raises: ConfigError."""
    model = build_model(config)
    load_weights(checkpoint_dir, model, average)
    return model


def _load(
    checkpoint_dir: Path,
    config: TrainConfig,
    model_config: LlamaConfig,
    dtype: torch.dtype,
    average: bool,
) -> LlamaForCausalLM:
    """Build the model on the CPU and load it; what the checkpoint lacks stays NaN.

    An adapter is added to the weights of `train.base_model`.
    """
    with no_init_weights():  # random weights of 3 B parameters would take a minute
        model = LlamaForCausalLM(model_config)
    model.to(dtype)  # pyright: ignore[reportArgumentType]
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    if config.adapter:
        model.load_state_dict(merged_weights(load_adapted(checkpoint_dir, config, average)))
    else:
        load_weights(checkpoint_dir, model, average)
    return model


def require_finite(model: torch.nn.Module) -> None:
    """Assert that every weight is finite.

    Raises: ContractError naming the first that is not.
    """
    for name, parameter in model.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            raise ContractError(
                f"weight {name} has {bad} of {parameter.numel()} numbers that are not finite",
                "the checkpoint lacks them, or training has diverged",
                "Export an earlier checkpoint.",
            )


def _card(config: TrainConfig, progress: Progress, dtype: str, codec: str, name: str) -> str:
    base = config.base_model
    if base is None:
        header, origin = "", "none: trained from random weights (a trial)"
        licence = "No base model, so none of its licences applies."
    else:
        header = f"base_model: {base}\n" if not Path(base).exists() else ""
        origin = base
        licence = (
            "The licence of the base model applies to these weights too. That of Llama 3.2 asks, among "
            'other things, that a derived model\'s name begin with "Llama" and that "Built with '
            'Llama" be shown. The licence of the training data is not known here.'
        )
    untrained = codec.startswith("UNTRAINED")
    warning = "\n**The codec was untrained: these speech tokens are noise.**\n" if untrained else ""
    return f"""---
library_name: transformers
pipeline_tag: text-to-speech
{header}---

# {name}

A speech language model in Orpheus' format, trained with koe {version("koe-pretrain")}.
{warning}
| | |
|---|---|
| base model | {origin} |
| optimizer steps | {progress.steps:,} |
| tokens seen | {progress.tokens:,} |
| sequences per step | {progress.rows_per_step} |
| shards (fingerprint) | `{progress.shards}` |
| codec | {codec} |
| weights | {dtype} (trained with {config.master_weights} master weights) |

Speech: `<custom_token_3><|begin_of_text|>TEXT<|eot_id|><custom_token_4><custom_token_5>\
<custom_token_1>`
(ids 128259 128000 ... 128009 128260 128261 128257), then 7 ids per frame of 85.3 ms from 128266 on,
until 128258. For an answer in text leave 128257 out and stop at 128009 (`eos_token_id=128009`).

{licence}
"""
