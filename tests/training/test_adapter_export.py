"""An adapter, exported: added to the weights, or as a folder for peft."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from koe.errors import ConfigError
from tests.training.adapters import adapter_config, logits_of, stir, write_base
from training.checkpoint.keeping import Keeping
from training.checkpoint.local import LocalCheckpoints
from training.checkpoint.manifest import Progress
from training.checkpoint.writer import CheckpointWriter
from training.export.folder import export
from training.model.distributed import single
from training.model.llama import build_model
from training.model.optim import build_optimizer

PROGRESS = Progress(steps=12, data_steps=12, tokens=3456, shards="ab" * 32, rows_per_step=64)


def checkpoint_of(folder, config):
    """Save a stirred adapter; return the folder of its checkpoint, and the model."""
    model = build_model(config)
    stir(model)
    model.config.save_pretrained(folder / "model")
    store = LocalCheckpoints(folder / "checkpoints")
    with CheckpointWriter(
        store, single("cpu"), keeping=Keeping(1, 0), asynchronous=False
    ) as writer:
        writer.start(PROGRESS, model, build_optimizer(model, config), {})
        writer.finish()
    return store.place_of(PROGRESS.steps), model


@pytest.fixture(scope="module", params=["tied", "untied"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    base = write_base(folder / "base", tie_word_embeddings=request.param == "tied")
    config = adapter_config(base)
    return folder, config, *checkpoint_of(folder, config)


def settings_for(folder, dtype="fp32"):
    return {
        "model_config": folder / "model" / "config.json",
        "dtype": dtype,
        "codec": "snac_24khz sha256:4b8164cc",
        "save_tokenizer": lambda path: (path / "tokenizer.json").write_text("{}"),
    }


def test_the_adapter_is_added_to_the_weights(trained, tmp_path):
    folder, config, checkpoint, model = trained
    expected = logits_of(model)
    export(checkpoint, config, tmp_path / "out", **settings_for(folder))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(found) is LlamaForCausalLM
    torch.testing.assert_close(logits_of(found), expected, rtol=1e-4, atol=1e-4)
    assert (
        found.lm_head.weight is found.model.embed_tokens.weight
    ) == model.config.tie_word_embeddings


def test_an_adapter_is_not_added_to_another_base(trained, tmp_path):
    folder, _, checkpoint, model = trained
    tied = model.config.tie_word_embeddings
    other = adapter_config(write_base(tmp_path / "other", seed=1, tie_word_embeddings=tied))
    with pytest.raises(ConfigError, match="another base model"):
        export(checkpoint, other, tmp_path / "out", **settings_for(folder))
    whole = other.model_copy(update={"adapter": None})
    with pytest.raises(ConfigError, match="does not fit the model"):
        export(checkpoint, whole, tmp_path / "out", **settings_for(folder))
    assert not (tmp_path / "out").exists()
