"""A wrong configuration is refused by key, with the nearest known one, before any work."""

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
    ("key", "value"),
    [
        ("snac.weights", lambda config: config.snac.weights),
        ("tokenize.tokenizer", lambda config: config.tokenize.tokenizer),
        ("train.base_model", lambda config: config.train.base_model),
        ("score.model", lambda config: config.score.model),
    ],
)
def test_every_path_starts_from_the_config(tmp_path, key, value):
    path = write(tmp_path, MINIMAL)
    assert value(load_config(path, [f"{key}=./here"])) == str(tmp_path / "here")
    assert value(load_config(path, [f"{key}=/there/../x"])) == "/x"
    assert value(load_config(path, [f"{key}=~/x"])) == str(Path("~/x").expanduser())


def test_a_name_is_a_path_where_a_folder_has_it(tmp_path):
    path = write(tmp_path, MINIMAL)
    assert load_config(path).tokenize.tokenizer == "llama-models"
    (tmp_path / "llama-models").mkdir()
    for overrides in ([], ["tokenize.tokenizer=llama-models"]):
        config = load_config(path, overrides)
        assert config.tokenize.tokenizer == str(tmp_path / "llama-models")


def test_former_keys_are_accepted_with_one_warning_each(tmp_path, caplog):
    path = write(tmp_path, MINIMAL + "plan: {unit_clips: 7, samples_per_unit: 8}\n")
    for _ in range(2):
        config = load_config(path, ["plan.unit_samples=9"])
        assert (config.plan.clips_per_unit, config.plan.samples_per_unit) == (7, 9)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: plan.unit_clips is now called plan.clips_per_unit; the former name still works",
        "--set: plan.unit_samples is now called plan.samples_per_unit; the former name still works",
    ]


def test_a_key_under_both_names_is_refused(tmp_path):
    path = write(tmp_path, MINIMAL + "plan: {unit_clips: 7, clips_per_unit: 8}\n")
    with pytest.raises(ConfigError, match=r"plan\.clips_per_unit twice.*Remove plan\.unit_clips"):
        load_config(path)


def test_a_default_is_told_from_the_same_value_in_the_file(tmp_path):
    """Receipts of runs that left the key out hold 256, those of the others 256.0."""
    path = write(tmp_path, MINIMAL)
    assert str(load_config(path).interleave.shard_megabytes) == "256"
    named = load_config(path, ["interleave.shard_megabytes=256"])
    assert str(named.interleave.shard_megabytes) == "256.0"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("scroe: {}", "unknown key 'scroe' .did you mean 'score'"),
        (
            "interleave: {duplicates: drop}",
            "duplicates is a section, not 'drop' .its keys: audio, codes",
        ),
        ("train: {tiny: 4}", "train.tiny is a section, not 4 .its keys: hidden_size"),
        ("encode: {threshold_ovr: 2}", "encode.threshold_ovr' .did you mean 'threshold_ovrl'"),
        ("score: {windows: some}", "score.windows: Input should be 'reference' or 'all'"),
        ("interleave: {ratio: [[0.5, {text: 1}]]}", "must start at 0.0"),
        ("interleave: {ratio: [[0.0, {text: 0}]]}", "must not be negative nor all zero"),
        ("train: {workers: 0}", "train.workers"),
        ("score: {gpus_per_worker: 1.5}", "gpus_per_worker: 1.5 is neither a part of one GPU nor"),
        ("encode: {gpus_per_worker: 0.00001}", "1e-05 of a GPU: Ray reserves no part below 0.0001"),
        ("encode: {gpus_per_worker: -1}", "encode.gpus_per_worker"),
        ("interleave: {ratio: [[0.0, {tekst: 1}]]}", "interleave.ratio"),
        (
            "interleave: {ratio: even}",
            "interleave.ratio: Input should be 'natural', or a valid list$",
        ),
        ("interleave: {ratio: [[0.0, 3]]}", "because interleave.ratio.0.1: .*valid dictionary"),
        ("interleave: {ratio: []}", "must start at 0.0"),
        ("interleave: {ratio: [[0.0, {}]]}", "must not be negative nor all zero"),
        ("interleave: {ratio: [[0.0, {text: -1, speech: 3}]]}", "must not be negative"),
        ("interleave: {ratio: [[0, {text: 1}], [0.6, {text: 1}], [0.5, {text: 1}]]}", "must start"),
        ("interleave: {ratio: [[0.0, {text: 1}], [1.5, {text: 1}]]}", "rise to at most 1.0"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path, extra, words):
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, MINIMAL + extra))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("kind: cassette", "kind.*webdataset"),
        ("kind: manifest, fields: {txet: a}", "txet.*did you mean 'text'"),
        ("kind: manifest, fields: {text: ''}", "fields.text"),
        ("kind: webdataset, audio_root: /x", "audio_root has no meaning"),
    ],
)
def test_a_wrong_source_is_refused(tmp_path, source, words):
    speech = f"run_dir: x\nsources:\n  speech:\n    - {{name: s, paths: [x], {source}}}\n"
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, speech))


@pytest.mark.parametrize("prompt", ["{speaker}", "{text", "{text}{}", "{text!r}", "{text.x}", "a"])
def test_other_prompts_are_refused(tmp_path, prompt):
    with pytest.raises(ConfigError, match=r"tokenize\.speech_prompt"):
        load_config(write(tmp_path, MINIMAL), [f"tokenize.speech_prompt='{prompt}'"])


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
        with pytest.raises(ConfigError, match=r"the value is not valid YAML.*Quote a value"):
            load_config(path, [f"tokenize.speech_prompt={value}"])


def test_a_missing_or_broken_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"is a folder\. Name the configuration in it"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_config(write(tmp_path, "a: [1"))
    assert "\n" not in str(caught.value)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    """YAML's loaders take the last one, and the sources of the first would be lost."""
    for extra in ("seed: 1\nseed: 2", "encode:\n  threshold_ovrl: 2\n  threshold_ovrl: 3"):
        with pytest.raises(ConfigError, match=r"the key '\w+' stands twice .* line \d+"):
            load_config(write(tmp_path, f"{MINIMAL}\n{extra}\n"))
    merged = "x: &x {threshold_ovrl: 2}\ny: &y {<<: *x, threshold_ovrl: 3}\nencode: {<<: *y}\n"
    with pytest.raises(ConfigError, match="unknown key 'x'"):  # and nothing about the aliases
        load_config(write(tmp_path, f"{MINIMAL}\n{merged}"))


def test_a_wrong_option_is_not_put_on_the_file(tmp_path):
    path = write(tmp_path, MINIMAL)
    with pytest.raises(ConfigError, match=r"not a valid configuration with --set seed=x") as caught:
        load_config(path, ["seed=x"])
    assert caught.value.why.startswith("seed:")
    with pytest.raises(ConfigError, match=r"with --what-if transcripts.nonsense=3"):
        load_config(path, ["transcripts.nonsense=3"], "--what-if")
    with pytest.raises(ConfigError, match=r"is not a valid configuration"):
        load_config(write(tmp_path, f"{MINIMAL}\nseed: x"), ["seed=x"])


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
