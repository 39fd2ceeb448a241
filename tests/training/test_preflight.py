import numpy as np
import pytest

from koe.errors import ConfigError
from tests.training.helpers import small_config, small_shards
from training import preflight
from training.config import TrainConfig
from training.launch import launch
from training.loop import train
from training.model.distributed import single
from training.preflight import refused_settings, refused_shards, single_modality_share
from training.refusals import REFUSALS


def test_the_defaults_pass_and_are_the_cure():
    config = TrainConfig()
    assert refused_settings(config) == []
    assert config.rows_per_step == 64
    assert (config.precision, config.master_weights, config.warmup_steps) == ("bf16", "fp32", 10000)
    assert config.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"warmup_steps": 0}, "no_warmup", "moments"),
        ({"warmup_steps": 101, "max_steps": 100}, "warmup_longer_than_run", "would end before"),
        ({"workers": 7}, "few_sequences", "64"),
        ({"precision": "fp16"}, "fp16", "65,504"),
        ({"master_weights": "bf16"}, "bf16_master_weights", "half a BF16 step"),
    ],
)
def test_each_setting_is_refused_with_reason_and_remedy_and_allowed_by_name(change, name, words):
    config = TrainConfig(**change)
    assert refused_settings(config) == [name]
    with pytest.raises(ConfigError) as raised:
        preflight.require([name], config)
    assert name in raised.value.what
    assert words in raised.value.why
    assert any(f"{verb} train" in raised.value.remedy for verb in ("Set", "Raise", "Lower"))
    assert f"train.allow=[{name}]" in raised.value.remedy
    preflight.require([name], TrainConfig(**change, allow=[name]))


def test_all_that_is_wrong_is_named_at_once():
    config = TrainConfig(warmup_steps=0, workers=1, allow=["no_warmup"])
    with pytest.raises(ConfigError, match="few_sequences, fp16"):
        preflight.require(["no_warmup", "few_sequences", "fp16"], config)
    assert set(REFUSALS) == {
        "no_warmup", "few_sequences", "long_rows", "fp16", "bf16_master_weights",
        "single_modality_steps", "warmup_longer_than_run", "many_epochs",
    }  # fmt: skip


def test_an_unknown_name_is_no_permission():
    with pytest.raises(ValueError, match="no_warm_up"):
        TrainConfig(allow=["no_warm_up"])


def test_steps_of_one_modality_are_counted():
    text, speech, both = [1] * 4, [2] * 4, [1, 2, 1, 2]
    share = single_modality_share(np.array(text + both + speech + [3, 1, 1, 1]), 4, 100)
    assert share == 0.5
    assert single_modality_share(np.array(text + text), 4, 100) == 0, "nothing to mix"
    assert single_modality_share(np.array(both + text), 4, 1) == 0, "the run is one step long"


def test_shards_of_long_rows_or_unmixed_steps_are_refused():
    mixed, apart = np.array([1, 2] * 32), np.array([1] * 32 + [2] * 32)
    config = small_config(micro_batch_rows=8, accumulation_steps=1, max_steps=80)
    assert refused_shards(2048, mixed, config) == []
    assert refused_shards(2049, mixed, config) == ["long_rows"]
    assert refused_shards(2048, apart, config) == ["single_modality_steps"]


def test_a_run_of_more_epochs_than_allowed_is_refused_wherever_it_begins(tmp_path):
    mixed = np.array([1, 2] * 32)
    config = small_config(micro_batch_rows=8, accumulation_steps=1, max_steps=81, allow=[])
    assert refused_shards(2048, mixed, config) == ["many_epochs"]
    assert not refused_shards(2048, mixed, config.model_copy(update={"max_epochs": 10.125}))
    shards = small_shards(tmp_path / "shards", num_rows=16)
    long = small_config(max_steps=41, allow=["few_sequences"])
    for start in (train, launch):
        with pytest.raises(ConfigError, match="many_epochs"):
            start(long, shards, tmp_path / "out", *([single("cpu")] if start is train else []))
    assert not (tmp_path / "out").exists()
    preflight.require_length(shards, small_config(max_steps=40, allow=["few_sequences"]))


def test_training_itself_refuses_unmixed_shards(tmp_path):
    shards = small_shards(tmp_path / "shards", num_documents=1, num_rows=16, modality_runs=4)
    config = small_config(micro_batch_rows=4, accumulation_steps=1)
    with pytest.raises(ConfigError, match="single_modality_steps"):
        train(config, shards, tmp_path / "out", single("cpu"))
    assert not (tmp_path / "out").exists()
