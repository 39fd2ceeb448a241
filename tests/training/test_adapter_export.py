"""An adapter, exported: added to the weights, or as a folder for peft."""

import re
from functools import partial

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from koe.errors import ConfigError
from stages.text.saved_tokenizer import save_orpheus_tokenizer
from stages.text.tokenizer import PACKAGE, load_tokenizer
from tests.training.adapters import adapter_config, logits_of, stir, write_base
from training.checkpoint.keeping import Keeping
from training.checkpoint.local import LocalCheckpoints
from training.checkpoint.manifest import Progress
from training.checkpoint.writer import CheckpointWriter
from training.export.adapter import export_adapter
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


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("error::UserWarning")
def test_peft_loads_the_adapter_alone_with_equal_logits(trained, tmp_path):
    folder, config, checkpoint, model = trained
    expected = logits_of(model)
    export_adapter(checkpoint, config, tmp_path / "out", **alone(folder))
    base = AutoModelForCausalLM.from_pretrained(config.base_model, dtype=torch.float32)
    base.resize_token_embeddings(model.num_embeddings)
    found = PeftModel.from_pretrained(base, tmp_path / "out")
    assert torch.equal(logits_of(found), expected)
    merged = found.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-4)
    tied = model.config.tie_word_embeddings
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md",
    }  # fmt: skip


def alone(folder, **changes):
    settings = settings_for(folder)
    del settings["model_config"]
    return {**settings, **changes}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_without_the_embedding_an_adapter_is_small_and_needs_no_more_rows(tmp_path):
    base = write_base(tmp_path / "base", vocab_size=156_992)
    config = adapter_config(base)
    checkpoint, model = checkpoint_of(tmp_path, config)
    export_adapter(checkpoint, config, tmp_path / "out", **alone(tmp_path, dtype="bf16"))
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(
        ".lora_" in name and weight.dtype == torch.bfloat16 for name, weight in stored.items()
    )
    assert "resize_token_embeddings" not in (tmp_path / "out" / "README.md").read_text()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    found = PeftModel.from_pretrained(plain, tmp_path / "out")
    torch.testing.assert_close(logits_of(found), logits_of(model), rtol=0.1, atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["tied"], indirect=True)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_the_block_of_the_card_runs_as_it_stands(trained, tmp_path, monkeypatch):
    folder, config, checkpoint, _ = trained
    save = partial(save_orpheus_tokenizer, load_tokenizer(PACKAGE))
    export_adapter(checkpoint, config, tmp_path / "voice", **alone(folder, save_tokenizer=save))
    card = (tmp_path / "voice" / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(block.replace("max_new_tokens=1200", "max_new_tokens=3"), found)
    assert 1 <= len(found["ids"]) <= 3
    assert isinstance(found["model"], PeftModel)
    assert "rank-stabilised" in card
    assert f"base model | {config.base_model} |" in card


def test_an_adapter_is_exported_only_where_there_is_one(trained, tmp_path):
    folder, config, checkpoint, _ = trained
    without = config.model_copy(update={"adapter": None})
    with pytest.raises(ConfigError, match=r"train\.adapter is null"):
        export_adapter(checkpoint, without, tmp_path / "out", **alone(folder))
    assert not (tmp_path / "out").exists()
