"""LoRA through peft: which weights are trained beside a base model, and which model that is.

peft puts its layers into the model in place, so that the model itself, its forward pass and its
distribution stay koe's. An embedding that is trained with them is the model's own: peft's wrapper
for such modules would keep a second copy of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from koe.errors import ConfigError
from koe.vocabulary import NUM_EMBEDDINGS
from training.config import AdapterConfig, TrainConfig

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import LlamaForCausalLM

    from training.model.llama import PackedLlama

STATE_KEY = "adapter"  # of what identifies an adapter, in a checkpoint's state
_NAME = "default"  # peft's name of the only adapter of a model
_HASHING_THREADS = 8


def require_peft(config: TrainConfig) -> None:
    """Refuse an adapter that cannot be made. Raises: ConfigError."""
    if config.adapter is None:
        return
    if not has_peft():
        raise ConfigError(
            "train.adapter is set",
            "the package peft is not installed",
            "Run `pip install 'koe-pretrain[adapter]'`, or set train.adapter: null.",
        )
    if config.base_model is None:
        raise ConfigError(
            "train.adapter is set, and train.base_model is null",
            "an adapter is worth something only beside weights that others have too",
            "Name a base model, or set train.adapter: null.",
        )


def has_peft() -> bool:
    """Tell whether peft is installed, an optional extra."""
    return importlib.util.find_spec("peft") is not None


def add_adapter(model: PackedLlama, config: TrainConfig, had_embeddings: int) -> None:
    """Put the adapter of `train.adapter` into a model, whose other weights are no longer trained.

    `had_embeddings`: the rows that the base model itself has. The new weights depend on `seed` alone.
    Raises: ConfigError when rows that the base model lacks would not be trained.
    """
    settings = config.adapter
    assert settings is not None
    with_embeddings = trains_embeddings(settings, had_embeddings)
    torch.manual_seed(config.seed)
    inject(model, settings, with_embeddings)
    model.adapter_identity = {
        "settings": settings.model_dump(exclude={"dropout"})
        | {"train_embeddings": with_embeddings},
        "frozen_sha256": _frozen_sha256(model),
    }


def inject(model: LlamaForCausalLM, settings: AdapterConfig, with_embeddings: bool) -> None:
    """Put adapters into any Llama, and let nothing else be trained but its embedding, if wanted."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(lora_config(settings), model)
    for layer in (model.model.embed_tokens, model.lm_head):
        layer.weight.requires_grad_(with_embeddings)


def trains_embeddings(settings: AdapterConfig, had_embeddings: int) -> bool:
    """Tell whether embedding and head are trained beside an adapter. Raises: ConfigError."""
    lacking = max(0, NUM_EMBEDDINGS - had_embeddings)
    if settings.train_embeddings is False and lacking:
        raise ConfigError(
            "train.adapter.train_embeddings is false",
            f"the base model lacks {lacking:,} of Orpheus' ids, whose rows are drawn at random and "
            "would stay so",
            "Set it to null or true, or start from a model that has all ids.",
        )
    return bool(lacking) if settings.train_embeddings is None else settings.train_embeddings


def lora_config(settings: AdapterConfig, **more: Any) -> LoraConfig:
    """Return peft's form of the settings."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] - only multiplied
        lora_dropout=settings.dropout,
        use_rslora=settings.rank_stabilised,
        target_modules=list(settings.targets),
        bias="none",
        task_type="CAUSAL_LM",
        **more,
    )


def _frozen_sha256(model: nn.Module) -> str:
    """Hash names, types, shapes and bytes of the weights that are not trained."""
    frozen = [(name, p.detach()) for name, p in model.named_parameters() if not p.requires_grad]
    whole = hashlib.sha256()
    with ThreadPoolExecutor(min(_HASHING_THREADS, os.cpu_count() or 1)) as threads:
        digests = threads.map(_sha256, [tensor for _, tensor in frozen])
        for (name, tensor), digest in zip(frozen, digests, strict=True):
            whole.update(f"{name} {tensor.dtype} {list(tensor.shape)} {digest}\n".encode())
    return whole.hexdigest()


def _sha256(tensor: torch.Tensor) -> str:
    flat = tensor.cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def adapter_state(model: nn.Module) -> dict[str, Any]:
    """Return what a checkpoint's state says of the model's adapter; nothing without one."""
    identity = getattr(model, "adapter_identity", None)
    return {STATE_KEY: identity} if identity else {}


def require_same_adapter(model: nn.Module, state: dict[str, Any], checkpoint: Any) -> None:
    """Refuse a checkpoint whose adapter stands beside other weights, or counts differently.

    A checkpoint of an adapter holds only what is trained. Raises: ConfigError.
    """
    found, own = state.get(STATE_KEY), getattr(model, "adapter_identity", None)
    if not found or not own or found == own:  # that there is none shows in the tensors' names
        return
    if found["frozen_sha256"] != own["frozen_sha256"]:
        raise ConfigError(
            f"checkpoint {checkpoint} holds an adapter of another base model",
            f"the weights beside it have the sha256 {found['frozen_sha256'][:12]}, those of "
            f"train.base_model {own['frozen_sha256'][:12]}",
            "Restore train.base_model, or train into another folder.",
        )
    changed = [key for key in own["settings"] if found["settings"].get(key) != own["settings"][key]]
    raise ConfigError(
        f"checkpoint {checkpoint} holds an adapter with other settings",
        "; ".join(
            f"train.adapter.{key} is {own['settings'][key]}, and was {found['settings'].get(key)}"
            for key in changed
        ),
        "Restore them, or train into another folder.",
    )


@torch.no_grad()
def merged_weights(model: PackedLlama) -> dict[str, torch.Tensor]:
    """Add the adapter to the weights beside it, in place, and return all by the base model's names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if not _is_lora(name)
    }


def peft_weights(model: PackedLlama) -> dict[str, torch.Tensor]:
    """Return what is trained, by its names in the file of a peft adapter.

    Those are the names in a PeftModel, without the adapter's own name ("Checkpoint format" in
    peft's documentation). A tied head stands there under both of its names, because peft ties
    modules that are saved whole only where it is asked to.
    """
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if model.model.embed_tokens.weight.requires_grad:
        weights["lm_head.weight"] = model.lm_head.weight.detach()
    return {f"base_model.model.{_saved(name)}": weight for name, weight in weights.items()}


def _saved(name: str) -> str:
    return name.replace(f".{_NAME}.", ".") if _is_lora(name) else name


def _is_lora(name: str) -> bool:
    return ".lora_" in name
