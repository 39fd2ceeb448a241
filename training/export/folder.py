"""Exports a checkpoint as a folder that transformers, vLLM, llama.cpp and Orpheus' engine can load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import CONFIG_NAME

from koe.errors import StorageError
from training.checkpoint.manifest import read_manifest
from training.config import TrainConfig
from training.export import gguf_file
from training.export.card import Use, card_of
from training.export.configs import add_former_keys, prepare
from training.export.draft import drafted, require_free
from training.export.weights import DTYPES, load_model, read_model_config, require_finite
from training.places import Place, absolute


def export(
    checkpoint_dir: Path,
    config: TrainConfig,
    out: Place,
    *,
    model_config: Path,
    dtype: str,
    codec: str,
    save_tokenizer: Callable[[Path], None],
    speech_prompt: str = "{text}",
    average: bool = False,
    gguf: bool = False,
    repository: str | None = None,
) -> None:
    """Write the weights of one checkpoint as a folder for `AutoModelForCausalLM.from_pretrained`.

    `model_config` is the config.json that the run has saved (the base model's weights are only needed
    for an adapter), `codec` the label of the codec that made the shards, `speech_prompt` how the text
    of a sample is written. `average` takes the averaged weights in place of the last ones. `gguf`
    writes the same weights for llama.cpp too. `repository` is where on the hub the folder will lie,
    which the card names. `out` may be a URL. The folder is written completely or not at all; at a URL,
    config.json comes last, without which no library takes it for a model.
    Raises: ConfigError when `out` is not empty, the model lacks Orpheus' ids or GGUF has no form for
    it; ContractError for weights that are missing or not finite; StorageError.
    """
    out = absolute(out)
    require_free(out)
    shape = read_model_config(model_config)
    if gguf:
        gguf_file.require_form(shape)
    model = load_model(checkpoint_dir, config, shape, DTYPES[dtype], average)
    require_finite(model)
    prepare(model)
    card = card_of(
        config,
        read_manifest(checkpoint_dir).progress,
        Use(Path(out).name, repository, gguf_file.name_of(dtype), has_gguf=gguf),
        dtype=f"{dtype}, averaged over the last steps" if average else dtype,
        codec=codec,
        speech_prompt=speech_prompt,
    )
    try:
        with drafted(out, last=CONFIG_NAME) as draft:
            model.save_pretrained(draft)
            add_former_keys(draft)
            save_tokenizer(draft)
            if gguf:
                gguf_file.write(draft / gguf_file.name_of(dtype), model, draft, Path(out).name)
            (draft / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{out} cannot be written", str(error), "Free or mount the disk and export again."
        ) from error
