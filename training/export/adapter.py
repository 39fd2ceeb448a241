"""Exports an adapter alone, as a folder that peft loads beside the base model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from koe.errors import ConfigError, StorageError
from training.adapter import lora_config, peft_weights
from training.checkpoint.manifest import read_manifest
from training.config import TrainConfig
from training.export.card import adapter_card_of
from training.export.draft import drafted, require_free
from training.export.weights import DTYPES, load_adapted, require_finite
from training.model.llama import PackedLlama
from training.places import Place, absolute

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"  # peft's names


def export_adapter(
    checkpoint_dir: Path,
    config: TrainConfig,
    out: Place,
    *,
    dtype: str,
    codec: str,
    save_tokenizer: Callable[[Path], None],
    average: bool = False,
    speech_prompt: str = "{text}",
    repository: str | None = None,
) -> None:
    """Write the adapter of one checkpoint as a folder for `PeftModel.from_pretrained`.

    The base model, which must be the one of the training, is needed to know that it is. The arguments
    are those of `training.export.folder.export`. Raises: ConfigError without `train.adapter`, when
    `out` is not empty or the base model is another one; ContractError for weights that are not finite;
    StorageError.
    """
    if config.adapter is None:
        raise ConfigError(
            "train.adapter is null", "so there is no adapter to export", "Leave out --adapter."
        )
    out = absolute(out)
    require_free(out)
    model = load_adapted(checkpoint_dir, config, average)
    require_finite(model)
    card = adapter_card_of(
        config,
        read_manifest(checkpoint_dir).progress,
        repository or Path(out).name,
        embeddings=model.num_embeddings if _with_embeddings(model) else None,
        dtype=dtype,
        codec=codec,
        speech_prompt=speech_prompt,
    )
    try:
        with drafted(out, last=SETTINGS) as draft:
            _save(model, config, draft, dtype)
            save_tokenizer(draft)
            (draft / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{out} cannot be written", str(error), "Free or mount the disk and export again."
        ) from error


def _save(model: PackedLlama, config: TrainConfig, folder: Path, dtype: str) -> None:
    """Write the weights and settings of an adapter under the names that peft reads.

    Releases of peft before `ensure_weight_tying` load a tied head from the copy that stands here.
    """
    assert config.adapter is not None
    whole = _with_embeddings(model)
    settings = lora_config(
        config.adapter,
        modules_to_save=["embed_tokens", "lm_head"] if whole else None,
        ensure_weight_tying=whole and model.config.tie_word_embeddings,
        base_model_name_or_path=config.base_model,
        inference_mode=True,
    )
    weights = {
        # cloned, because safetensors refuses a tensor that stands under two names
        name: weight.to(DTYPES[dtype], copy=True).contiguous()
        for name, weight in peft_weights(model).items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    settings.save_pretrained(str(folder))


def _with_embeddings(model: PackedLlama) -> bool:
    return model.model.embed_tokens.weight.requires_grad
