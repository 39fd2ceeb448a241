import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from koe.errors import ConfigError, ContractError, StorageError
from koe.vocabulary import END_OF_SPEECH, END_OF_TEXT, NUM_EMBEDDINGS, PAD, START_OF_TEXT
from tests.full_disk import full_disk
from tests.training.saving import open_writer
from training.checkpoint.local import LocalCheckpoints
from training.checkpoint.manifest import Progress
from training.config import TinyModelConfig, TrainConfig
from training.export.configs import former_keys
from training.export.folder import export
from training.export.weights import require_finite
from training.model.llama import build_model
from training.model.optim import build_optimizer

TINY = TinyModelConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2)
CONFIG = TrainConfig(device="cpu", base_model=None, precision="fp32", tiny=TINY, seed=3)
PROGRESS = Progress(steps=1234, data_steps=1300, tokens=5678901, shards="ab" * 32, rows_per_step=64)


def write_checkpoint(folder, model):
    optimizer = build_optimizer(model, CONFIG)
    ids = torch.arange(20).view(1, -1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model.config.save_pretrained(folder / "model")
    store = LocalCheckpoints(folder / "checkpoints")
    with open_writer(store, asynchronous=False) as writer:
        writer.start(PROGRESS, model, optimizer, {})
        writer.finish()
    return store.place_of(PROGRESS.steps)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run with one checkpoint, and the model that it holds."""
    folder, model = tmp_path_factory.mktemp("run"), build_model(CONFIG)
    write_checkpoint(folder, model)
    return folder, model.eval()


def save_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def export_from(run, out, **changes):
    settings = {
        "config": CONFIG,
        "model_config": run / "model" / "config.json",
        "dtype": "fp32",
        "codec": "snac_24khz sha256:4b8164cc",
        "save_tokenizer": save_tokenizer,
        **changes,
    }
    export(LocalCheckpoints(run / "checkpoints").place_of(PROGRESS.steps), out=out, **settings)


def logits_of(model):
    ids = torch.randint(0, NUM_EMBEDDINGS, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_fp32_loads_with_equal_logits(trained, tmp_path):
    run, model = trained
    export_from(run, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(found) is LlamaForCausalLM
    assert found.config.architectures == ["LlamaForCausalLM"]
    assert found.config.use_cache
    assert found.config.vocab_size == model.num_embeddings >= NUM_EMBEDDINGS
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert torch.equal(logits_of(found.eval()), logits_of(model))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in stored
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md",
    }  # fmt: skip
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_bf16_holds_the_rounded_weights(trained, tmp_path):
    run, model = trained
    export_from(run, tmp_path / "out", dtype="bf16")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # in the dtype of its config
    assert found.dtype == torch.bfloat16
    expected = model.state_dict()
    for name, weight in found.state_dict().items():
        assert torch.equal(weight, expected[name].bfloat16()), name


def test_generation_ends_where_the_answer_ends(trained, tmp_path):
    export_from(trained[0], tmp_path / "out")
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (found.bos_token_id, found.pad_token_id) == (START_OF_TEXT, PAD)
    assert found.eos_token_id == [END_OF_SPEECH, END_OF_TEXT]  # of an answer in speech, or in text
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.bos_token_id, config.eos_token_id) == (START_OF_TEXT, found.eos_token_id)
    assert (found.do_sample, found.temperature, found.top_p) == (True, 0.6, 0.95)
    assert found.repetition_penalty == 1.1


FACTORS = st.floats(1.0, 64.0)
SCALINGS = st.one_of(
    st.just({"rope_type": "default"}),
    st.fixed_dictionaries({"rope_type": st.sampled_from(["linear", "dynamic"]), "factor": FACTORS}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("yarn"),
            "factor": FACTORS,
            "original_max_position_embeddings": st.integers(64, 2048),
        }
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": FACTORS,
            "low_freq_factor": st.floats(0.5, 1.0),
            "high_freq_factor": st.floats(2.0, 8.0),
            "original_max_position_embeddings": st.integers(64, 2048),
        }
    ),
)


@given(SCALINGS, st.floats(1e3, 1e6), st.sampled_from(["bfloat16", "float32"]))
def test_the_former_keys_mean_the_same_as_the_present_ones(scaling, theta, dtype):
    """transformers 5 still reads both, so each alone and both together must give one model."""
    config = LlamaConfig(rope_parameters={**scaling, "rope_theta": theta}, dtype=dtype)
    present = config.to_dict()
    former = former_keys(present)
    assert set(former) == {"rope_theta", "rope_scaling", "torch_dtype"}
    bare = {key: value for key, value in present.items() if key not in ("rope_parameters", "dtype")}
    for keys in (bare | former, present | former):
        found = LlamaConfig(**json.loads(json.dumps(keys)))
        assert found.rope_parameters == config.rope_parameters
        assert found.dtype == config.dtype


@pytest.mark.parametrize(
    ("changes", "expected", "absent"),
    [
        ({}, ["1,234", "5,678,901", "abab", "snac_24khz sha256:4b8164cc", "trial"], "Llama 3.2"),
        ({"codec": "UNTRAINED (seed 0)"}, ["UNTRAINED (seed 0)", "these speech tokens are noise"], ""),
        (
            {"speech_prompt": "{speaker}: {text}", "repository": "someone/my-model"},
            ["as `{speaker}: {text}`", "# my-model", '"someone/my-model"', "model_name: someone/my-model"],
            '"out"',
        ),
        (
            {"config": CONFIG.model_copy(update={"base_model": "meta-llama/Llama-3.2-3B"})},
            ["base_model: meta-llama/Llama-3.2-3B", "Built with Llama", "fp32"],
            "noise",
        ),
    ],
)  # fmt: skip
def test_the_card_says_what_is_known(trained, tmp_path, changes, expected, absent):
    export_from(trained[0], tmp_path / "out", **changes)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in expected:
        assert text in card
    assert not absent or absent not in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_what_is_there_is_never_written_over(trained, tmp_path):
    run, _ = trained
    out = tmp_path / "out"
    out.mkdir()
    export_from(run, out)  # an empty folder is free
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ConfigError, match=r"out already exists.*never overwrites"):
        export_from(run, out, dtype="bf16")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="file already exists"):
        export_from(run, tmp_path / "file")


def test_a_failure_leaves_no_folder(trained, tmp_path):
    def no_room(folder):
        assert (folder / "model.safetensors").exists()
        raise OSError("No space left on device")

    with pytest.raises(StorageError, match=r"out cannot be written because No space left"):
        export_from(trained[0], tmp_path / "out", save_tokenizer=no_room)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.tmp").mkdir()
    export_from(trained[0], tmp_path / "out")  # over the draft of one that was killed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_too_small_for_the_weights_leaves_nothing(trained, tmp_path):
    refused = pytest.raises(StorageError, match=r"out cannot be written.*Free or mount the disk")
    with full_disk(100_000), refused:
        export_from(trained[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    model = build_model(CONFIG)
    write_checkpoint(tmp_path, model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
    with pytest.raises(ContractError, match=r"layers.1.mlp.up_proj.weight has 1 of 512 numbers"):
        require_finite(model)
    shutil.rmtree(tmp_path / "checkpoints")
    write_checkpoint(tmp_path, model)
    with pytest.raises(ContractError, match="not finite"):
        export_from(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_shape_is_refused(trained, tmp_path):
    run, _ = trained
    shape = json.loads((run / "model" / "config.json").read_text())
    path = tmp_path / "config.json"
    for changes, message in (
        ({"intermediate_size": 64}, "does not fit"),
        ({"num_hidden_layers": 3}, "does not"),
        ({"vocab_size": 512}, "has 512 embeddings because an Orpheus model needs 156,938"),
    ):
        path.write_text(json.dumps({**shape, **changes}))
        with pytest.raises(ConfigError, match=message):
            export_from(run, tmp_path / "out", model_config=path)
    path.unlink()
    with pytest.raises(ConfigError, match=r"shape of the model cannot be read from .*config.json"):
        export_from(run, tmp_path / "out", model_config=path)
    assert not list(tmp_path.iterdir())
