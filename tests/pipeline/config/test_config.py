"""A config is refused by key, with the nearest known one, before any work."""

from pathlib import Path

import pytest

from koe.errors import ConfigError
from pipeline.config.load import load_config

MINIMAL = """
run_dir: out
sources:
  text:
    - {name: a, kind: jsonl, paths: [a.jsonl]}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    return path


def test_local_paths_start_from_the_config(tmp_path):
    config = load_config(write(tmp_path, MINIMAL))
    assert config.run_dir == str(tmp_path / "out")
    assert config.sources.text[0].paths == [str(tmp_path / "a.jsonl")]
    assert config.snac.weights == "hubertsiuzdak/snac_24khz"


def test_urls_stay_as_they_are(tmp_path):
    config = load_config(write(tmp_path, MINIMAL.replace("a.jsonl", "s3://b/a.jsonl")))
    assert config.sources.text[0].paths == ["s3://b/a.jsonl"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("scroe: {}", "unknown key 'scroe' .did you mean 'score'"),
        ("encode: {threshold_ovr: 2}", "encode.threshold_ovr' .did you mean 'threshold_ovrl'"),
        ("score: {windows: some}", "score.windows: Input should be 'reference' or 'all'"),
        ("interleave: {ratio: [[0.5, {text: 1}]]}", "must start at 0.0"),
        ("interleave: {ratio: [[0.0, {text: 0}]]}", "must not be negative nor all zero"),
        ("train: {workers: 0}", "train.workers"),
        ("interleave: {ratio: [[0.0, {tekst: 1}]]}", "interleave.ratio"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path, extra, words):
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, MINIMAL + extra))


def test_sources_are_named_once(tmp_path):
    twice = MINIMAL + "    - {name: a, kind: json, paths: [b.json]}\n"
    with pytest.raises(ConfigError, match="source names must differ"):
        load_config(write(tmp_path, twice))


def test_the_name_of_all_sources_is_no_source(tmp_path):
    with pytest.raises(ConfigError, match="no source may be called all"):
        load_config(write(tmp_path, MINIMAL.replace("name: a,", "name: all,")))


def test_no_source_at_all_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one"):
        load_config(write(tmp_path, "run_dir: x\nsources: {}\n"))


def test_overrides_set_nested_keys_with_yaml_values(tmp_path):
    path = write(tmp_path, MINIMAL)
    config = load_config(path, ["encode.threshold_ovrl=3", "interleave.ratio=natural"])
    assert config.encode.threshold_ovrl == 3.0
    with pytest.raises(ConfigError, match=r"key\.path=value"):
        load_config(path, ["encode"])
    with pytest.raises(ConfigError, match="does not lead to a mapping"):
        load_config(path, ["run_dir.x=1"])
    for value in ("{speaker}: {text}", "[1, 2", "'open"):
        with pytest.raises(ConfigError, match=r"the value is no YAML.*Quote a value"):
            load_config(path, [f"tokenize.speech_prompt={value}"])


def test_a_missing_or_broken_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_config(write(tmp_path, "a: [1"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["encode.threshold_ovrl", "train.learning_rate"])
@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_what_is_no_number_is_refused(key, value):
    """With nan as threshold no clip passes, and nothing would say so."""
    with pytest.raises(ConfigError, match=key):
        load_config(Path(__file__).parents[3] / "pipeline.yaml", [f"{key}={value}"])


def test_the_published_config_is_the_published_recipe():
    config = load_config(Path(__file__).parents[3] / "pipeline.yaml")
    train = config.train
    assert train.workers * train.micro_batch_rows * train.accumulation_steps == 64
    assert (train.precision, train.warmup_steps, train.learning_rate) == ("bf16", 10_000, 5e-5)
    assert config.interleave.max_row_tokens == 2048
    assert config.encode.threshold_ovrl == 2.5
