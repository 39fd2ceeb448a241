"""Exports of a run: a checkpoint for those who use the model, documents for those who train it further."""

from __future__ import annotations

from contextlib import closing
from functools import partial

from koe.dataflow import SHARDS
from koe.errors import ConfigError
from pipeline.config.models import PipelineConfig
from pipeline.jobs.train import shards_folder, training_place
from stages.text.saved_tokenizer import save_orpheus_tokenizer
from stages.text.tokenizer import load_tokenizer
from training.checkpoint import folder as checkpoints
from training.data.shard_index import read_index
from training.export.adapter import export_adapter
from training.export.documents import export_documents
from training.export.draft import require_free
from training.export.folder import export
from training.export.push import prepare_repository, push
from training.export.weights import DTYPES
from training.metrics import say
from training.mirror import local_copy
from training.places import Place, absolute, beside, local_folder
from training.run import CHECKPOINT_FOLDER, MODEL_FOLDER


def export_run(
    config: PipelineConfig,
    out: Place,
    steps: int | None,
    dtype: str,
    *,
    best: bool = False,
    average: bool = False,
    adapter: bool = False,
    gguf: bool = False,
    repository: str | None = None,
) -> str | None:
    """Export the run's checkpoint after `steps` steps, its `best` one, or its newest complete one.

    `average`: the averaged weights in place of the last ones. `adapter`: the adapter alone. With a
    `repository` of the Hugging Face hub, the folder is then uploaded there; returns its URL. Raises:
    ConfigError when there is no such checkpoint or the repository cannot be written, and the errors of
    `training.export.folder.export`, `training.export.adapter.export_adapter` and
    `training.export.push.push`.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}")
    if adapter and gguf:
        raise ConfigError(
            "--adapter and --gguf exclude each other",
            "a GGUF file holds a whole model",
            "Leave out --adapter: the adapter is then added to the weights.",
        )
    folder = local_folder(out)
    if repository is not None and folder is None:
        raise ConfigError(
            f"{out} cannot be uploaded to the hub", "it is no local folder", "Name a local folder."
        )
    train = training_place(config)
    model = f"{MODEL_FOLDER}/config.json"
    with closing(checkpoints.open_store(beside(train, CHECKPOINT_FOLDER))) as store:
        found = checkpoints.chosen(store, say, steps, best)
        codec = read_index(beside(config.run_dir, SHARDS)).get("codec", {})
        base = load_tokenizer(config.tokenize.tokenizer)
        if repository is not None:
            require_free(absolute(out))
            prepare_repository(repository)  # before the work, which would be in vain
        with local_copy(train, [model]) as run_model:
            whole = partial(export, model_config=run_model / model, gguf=gguf)
            write = export_adapter if adapter else whole
            write(
                found.path,
                config.train,
                out,
                dtype=dtype,
                codec=codec.get("label", "none: the shards hold no speech"),
                save_tokenizer=partial(save_orpheus_tokenizer, base),
                speech_prompt=config.tokenize.speech_prompt,
                average=average,
                repository=repository,
            )
    if repository is None or folder is None:
        return None
    return push(folder, repository)


def export_data(config: PipelineConfig, out: Place, loss_on: str | None) -> dict[str, int]:
    """Write the documents of the run's shards as Parquet; return their number by split.

    `loss_on` says what is labelled, by default what the run is trained on (`train.loss_on`).
    Raises: ConfigError when there are no shards, and the errors of `export_documents`.
    """
    return export_documents(
        shards_folder(config),
        out,
        loss_on=loss_on or config.train.loss_on,
        cache_gigabytes=config.train.shard_cache_gigabytes,
    )
