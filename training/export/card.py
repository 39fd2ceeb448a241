"""The model card: what the model is, how each client uses it, and how to go on training it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from koe import vocabulary
from training.checkpoint.manifest import Progress
from training.config import TrainConfig

TEMPLATE, ADAPTER_TEMPLATE = "card.md.j2", "adapter_card.md.j2"


@dataclass(frozen=True)
class Use:
    """What the blocks of a card call the model: the name of its folder, or its repository."""

    folder: str
    repository: str | None
    gguf: str  # the name of the file
    has_gguf: bool

    @property
    def name(self) -> str:
        return self.repository or self.folder

    @property
    def title(self) -> str:
        return self.name.rpartition("/")[2]


def card_of(
    config: TrainConfig, progress: Progress, use: Use, *, dtype: str, codec: str, speech_prompt: str
) -> str:
    """Write the card of a model that was trained with `config`, as Markdown.

    Its Python blocks run as they stand beside the folder, or anywhere with the repository.
    """
    return _template(TEMPLATE).render(
        use=use, **_facts(config, progress, dtype, codec, speech_prompt)
    )


def adapter_card_of(
    config: TrainConfig,
    progress: Progress,
    name: str,
    *,
    embeddings: int | None,
    dtype: str,
    codec: str,
    speech_prompt: str,
) -> str:
    """Write the card of an adapter, whose folder or repository is called `name`, as Markdown.

    `embeddings`: the rows that the base model must have, where the adapter brings all of them. Its
    Python block runs as it stands beside the folder, or anywhere with the repository.
    """
    return _template(ADAPTER_TEMPLATE).render(
        name=name,
        adapter=config.adapter,
        embeddings=embeddings,
        torch_dtype={"bf16": "bfloat16", "fp32": "float32"}[dtype],
        **_facts(config, progress, dtype, codec, speech_prompt),
    )


def _facts(
    config: TrainConfig, progress: Progress, dtype: str, codec: str, speech_prompt: str
) -> dict[str, Any]:
    base = config.base_model
    return {
        "base": base,
        "base_on_hub": base is not None and not Path(base).exists(),
        "progress": progress,
        "dtype": dtype,
        "master_weights": config.master_weights,
        "codec": codec,
        "is_untrained": codec.startswith("UNTRAINED"),
        "speech_prompt": speech_prompt,
        "koe_version": version("koe-pretrain"),
        "ids": vocabulary,
    }


def _template(name: str):
    environment = Environment(
        loader=PackageLoader("training.export", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=select_autoescape(),  # of HTML only, which a card is not
    )
    return environment.get_template(name)
