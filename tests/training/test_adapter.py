"""LoRA beside a base model: what is trained, saved and resumed."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM

from koe.errors import ConfigError
from koe.vocabulary import NUM_EMBEDDINGS
from tests.training.adapters import adapter_config, logits_of, stir, write_base
from tests.training.helpers import (
    VOCABULARY,
    assert_same_weights,
    batch_of,
    gradients,
    one_thread,
    saved_tensors,
    small_shards,
)
from tests.training.peft_twin import mean_loss, peft_twin
from tests.training.ranks import run_ranks
from training import adapter as adapters
from training import loop
from training.config import NewRowsConfig
from training.metrics import RunLog, read_metrics
from training.model import llama
from training.model.distributed import parallelise, single
from training.model.llama import build_model
from training.model.optim import NewRowsRate, build_optimizer, trainable
from training.step import accumulate_gradients

__all__ = ["one_thread"]

# peft 0.21 asks transformers for a property by its former name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

RANKS = single("cpu")
VARIANTS = (("fsdp", False), ("fsdp", True), ("ddp", True))  # and whether the embedding is trained


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A base model that has a row for every id."""
    return write_base(tmp_path_factory.mktemp("complete"), vocab_size=156_992)


@pytest.fixture
def few_ids(tmp_path, monkeypatch):
    """A base model that lacks 64 of 512 ids, since the logits of all 156,938 take their time."""
    know_few_ids(monkeypatch)
    return write_base(tmp_path / "base", vocab_size=VOCABULARY - 64)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("stabilised", [True, False])
def test_updates_equal_those_of_peft_alone(base, shards, stabilised):
    config = adapter_config(base, {"rank_stabilised": stabilised})
    ours, batch = build_model(config).train(), batch_of(shards, [0, 1])
    twin = peft_twin(config, ours)
    optimizer = build_optimizer(ours, config)
    groups = [
        {"params": [p for n, p in twin.named_parameters() if ".lora_" in n], "weight_decay": 0.1},
        {"params": [p for n, p in twin.named_parameters() if p.requires_grad and "lora_" not in n]},
    ]
    theirs = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(3):
        result = accumulate_gradients(ours, [batch], RANKS, "fp32", 2)
        loss = mean_loss(twin, batch)
        loss.backward()
        assert result.loss == pytest.approx(loss.item(), rel=1e-5)
        for of in (optimizer, theirs):
            of.step()
            of.zero_grad()
    found = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    expected = {
        f"base_model.model.{name}": p for name, p in ours.named_parameters() if p.requires_grad
    }
    embedding = "base_model.model.model.embed_tokens"
    expected[f"{embedding}.modules_to_save.default.weight"] = expected.pop(f"{embedding}.weight")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        # Adam's first steps divide by gradients that are nearly zero
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=2e-4)


def test_only_what_is_asked_for_is_trained(base, complete):
    lacking = build_model(adapter_config(base))
    assert lacking.num_embeddings >= NUM_EMBEDDINGS
    kinds = {
        name.rpartition(".")[0].rpartition(".")[2]
        for name, p in lacking.named_parameters()
        if p.requires_grad
    }
    assert kinds == {"default", "embed_tokens"}
    assert lacking.lm_head.weight is lacking.model.embed_tokens.weight
    alone = build_model(adapter_config(complete, {"targets": ["q_proj"]}))
    trained = [name for name, p in alone.named_parameters() if p.requires_grad]
    assert trained
    assert all(".q_proj.lora_" in name for name in trained)
    asked = build_model(adapter_config(complete, {"train_embeddings": True}))
    assert asked.model.embed_tokens.weight.requires_grad
    with pytest.raises(ConfigError, match="lacks 156,426 of Orpheus' ids"):
        build_model(adapter_config(base, {"train_embeddings": False}))


def test_a_frozen_embedding_costs_no_gradient_and_has_no_rate(complete, shards):
    config = adapter_config(complete, new_rows=NewRowsConfig(learning_rate_factor=3.0))
    model = build_model(config).train()
    optimizer = build_optimizer(model, config)
    rate = NewRowsRate(optimizer, model.model.embed_tokens.weight)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    accumulate_gradients(model, [batch_of(shards, [0, 1])], RANKS, "fp32", 2)
    with rate.scaled(3.0):
        optimizer.step()
    assert model.model.embed_tokens.weight.grad is None
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_frozen_head_changes_no_other_gradient(complete, shards):
    grads = []
    for frozen in (True, False):
        model = build_model(adapter_config(complete, {"train_embeddings": not frozen})).train()
        stir_only_lora(model)
        accumulate_gradients(model, [batch_of(shards, [0, 1])], RANKS, "fp32", 2)
        grads.append({n: p.grad for n, p in model.named_parameters() if "lora_" in n})
    assert_same_weights(*grads)


def test_layers_that_are_computed_again_give_the_same_gradients(few_ids, shards):
    grads = []
    for recomputed in (False, True):
        model = build_model(adapter_config(few_ids, {"dropout": 0.2}))
        stir(model)
        parallelise(
            model, RANKS, "fsdp", "fp32", compile=False, activation_checkpointing=recomputed
        )
        torch.manual_seed(3)  # of what is dropped, in both passes
        accumulate_gradients(model.train(), [batch_of(shards, [0, 1])], RANKS, "fp32", 2)
        grads.append(gradients(model))
    assert_same_weights(*grads)


def stir_only_lora(model):
    embedding = model.model.embed_tokens.weight
    was, embedding.requires_grad = embedding.requires_grad, False
    stir(model)
    embedding.requires_grad = was


def test_a_run_lowers_the_loss_and_saves_only_what_it_trains(few_ids, shards, tmp_path):
    config = adapter_config(few_ids, max_steps=8)
    loop.train(config, shards, tmp_path, RANKS)
    losses = [row["loss"] for row in read_metrics(tmp_path)]
    assert losses[-1] < losses[0]
    names = json.loads((tmp_path / "checkpoints/step-00000008/tensors.json").read_text())["tensors"]
    weights = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    assert weights == {n for n, p in build_model(config).named_parameters() if p.requires_grad}
    assert len(names) == 4 * len(weights)  # with two moments and the steps
    ratios = [row["update_ratio"] for row in read_metrics(tmp_path) if "update_ratio" in row]
    assert all({"attention", "mlp", "embedding_old"} <= ratio.keys() for ratio in ratios)
    assert all("norm" not in ratio for ratio in ratios)


@pytest.mark.law
def test_training_of_an_adapter_resumes_exactly(few_ids, shards, tmp_path, monkeypatch):
    """Also with dropout, whose random numbers go on where they stood."""
    config = adapter_config(few_ids, {"dropout": 0.2}, max_steps=6)
    loop.train(config, shards, tmp_path / "whole", RANKS)

    class Stop(Exception):
        pass

    def stop_at_5(self, row, step=RunLog.step):
        step(self, row)
        if row["step"] == 5:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", stop_at_5)
        with pytest.raises(Stop):
            loop.train(config, shards, tmp_path / "parts", RANKS)
    torch.manual_seed(12345)
    loop.train(config, shards, tmp_path / "parts", RANKS)
    assert_same_weights(*(saved_tensors(tmp_path / of, 6, config) for of in ("whole", "parts")))
    losses = [[row["loss"] for row in read_metrics(tmp_path / of)] for of in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_another_base_or_another_strength_is_refused(few_ids, shards, tmp_path):
    config = adapter_config(few_ids, max_steps=2)
    loop.train(config, shards, tmp_path / "run", RANKS)
    for changes, message in (
        ({"alpha": 16}, "train.adapter.alpha is 16.0, and was 8.0"),
        ({"rank": 2}, "train.adapter.rank is 2, and was 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            loop.train(
                adapter_config(few_ids, changes, max_steps=4), shards, tmp_path / "run", RANKS
            )
    dropping = adapter_config(
        few_ids, {"dropout": 0.5}, max_steps=3, resume_with_changes=["max_steps"]
    )
    assert loop.train(dropping, shards, tmp_path / "run", RANKS) == 3
    other = write_base(tmp_path / "other", seed=1, vocab_size=VOCABULARY - 64)
    with pytest.raises(ConfigError, match="another base model"):
        loop.train(adapter_config(other, max_steps=4), shards, tmp_path / "run", RANKS)
    whole = config.model_copy(update={"adapter": None, "max_steps": 4})
    with pytest.raises(ConfigError, match="does not fit the model"):
        loop.train(whole, shards, tmp_path / "run", RANKS)


def test_what_an_adapter_needs_is_said_before_any_work(base, monkeypatch):
    config = adapter_config(base)
    with pytest.raises(ConfigError, match=r"train\.base_model is null"):
        adapters.require_peft(config.model_copy(update={"base_model": None}))
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="peft is not installed"):
        adapters.require_peft(config)
    adapters.require_peft(config.model_copy(update={"adapter": None}))


def test_merged_weights_give_the_logits_of_the_unmerged_model(base):
    model = build_model(adapter_config(base))
    stir(model)
    expected = logits_of(model)
    bare = LlamaForCausalLM(model.config)
    bare.load_state_dict(adapters.merged_weights(model))
    torch.testing.assert_close(logits_of(bare), expected, rtol=1e-4, atol=1e-4)
    plain = build_model(adapter_config(base).model_copy(update={"adapter": None}))
    assert not torch.allclose(logits_of(plain), expected, atol=1e-2)
    assert trainable(plain) == list(plain.parameters())


def know_few_ids(patch):
    for module in (adapters, llama):
        patch.setattr(module, "NUM_EMBEDDINGS", VOCABULARY)


def in_ranks(ranks, base, shards, folder):
    with pytest.MonkeyPatch.context() as patch:
        know_few_ids(patch)
        for parallel, trained in VARIANTS:
            config = two_workers(base, {"train_embeddings": trained}, parallel=parallel)
            loop.train(config, shards, folder / f"{parallel}-{trained}", ranks)


def two_workers(base, adapter, **changes):
    settings = {"workers": 2, "accumulation_steps": 1, "max_steps": 3, **changes}
    return adapter_config(base, adapter, **settings)


@pytest.mark.slow
def test_two_ranks_train_an_adapter_as_one_does(shards, tmp_path, monkeypatch):
    base = write_base(tmp_path / "base", vocab_size=VOCABULARY)
    run_ranks(in_ranks, 2, base, shards, tmp_path)
    know_few_ids(monkeypatch)
    for parallel, trained in VARIANTS:
        config = adapter_config(base, {"train_embeddings": trained}, max_steps=3)
        alone = tmp_path / f"alone-{parallel}-{trained}"
        loop.train(config, shards, alone, RANKS)
        expected = saved_tensors(alone, 3, config)
        found = saved_tensors(tmp_path / f"{parallel}-{trained}", 3, config)
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=2e-5)
