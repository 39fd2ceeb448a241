"""Before its first unit a run says what it would leave out and how often it would repeat the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from koe.dataflow import stage_names
from koe.errors import ConfigError
from koe.schema import SPEECH, TEXT
from pipeline.config.load import load_config
from pipeline.execution.selection import select_stages
from pipeline.jobs.assembly import Assembly
from pipeline.jobs.forecast import Forecast, forecast, warnings
from pipeline.jobs.run import plan_run, run_job
from tests.calling import koe
from tests.corpus import write_corpus

QUIET = Console(stderr=True, quiet=True)
PUBLISHED = "interleave.ratio=[[0.0, {text: 2, speech: 1}], [1.0, {text: 1, speech: 1}]]"
ONE_TO_ONE = "interleave.ratio=[[0.0, {text: 1, speech: 1}]]"


def _config(tmp_path: Path, *overrides: str):
    return load_config(write_corpus(tmp_path), list(overrides))


def _warnings(config, found: Forecast, stages=None) -> list[str]:
    return list(warnings(config, found, stages or stage_names()))


def test_the_issues_example_is_said_with_both_keys(tmp_path):
    step = ("train.workers=8", "train.micro_batch_rows=2", "train.accumulation_steps=4")
    config = _config(tmp_path, PUBLISHED, "train.max_steps=100000", *step)
    found = Forecast(records={SPEECH: 100, TEXT: 1500}, rows={SPEECH: 27, TEXT: 176})
    ratio, epochs = _warnings(config, found)
    assert "interleave.ratio will leave out roughly 78% of the text (1,176 of 1,500" in ratio
    assert "`interleave.ratio: natural` keeps everything" in ratio
    assert "train.max_steps 100,000 will read the roughly 65 rows 99,000 times" in epochs


def test_a_natural_ratio_and_few_epochs_are_not_worth_a_word(tmp_path):
    config = _config(tmp_path, "train.max_steps=10")
    assert not _warnings(config, Forecast({SPEECH: 100, TEXT: 1500}, {SPEECH: 25, TEXT: 159}))


@pytest.mark.parametrize(("speech", "left_out"), [(100, False), (124, False), (126, True)])
def test_a_fifth_is_the_limit(tmp_path, speech, left_out):
    config = _config(tmp_path, ONE_TO_ONE)
    found = Forecast({SPEECH: 1000, TEXT: 1000}, {SPEECH: speech, TEXT: 100})
    said = [line for line in _warnings(config, found) if "of the speech" in line]
    assert bool(said) == left_out


def test_nothing_is_said_of_stages_that_do_not_run(tmp_path):
    config = _config(tmp_path, PUBLISHED, "train.max_steps=100000")
    found = Forecast({SPEECH: 100, TEXT: 1500}, {SPEECH: 25, TEXT: 159})
    assert not _warnings(config, found, ("ingest", "score"))
    assert not any("max_steps" in line for line in _warnings(config, found, stage_names()[:-1]))


@pytest.mark.slow
def test_the_rows_are_roughly_those_of_the_run(tmp_path):
    config = _config(tmp_path, "encode.threshold_ovrl=0.5", "interleave.shard_megabytes=1")
    plan = plan_run(config, QUIET)
    found = forecast(Assembly(config), plan, lambda: 0.0)
    assert found.unread == ()
    run_job(config, select_stages(None, "interleave", None, ()), QUIET)
    index = json.loads((Path(config.run_dir) / "shards/index.json").read_text())
    rows = sum(shard["rows"] for shard in index["shards"])
    assert sum(found.rows.values()) == pytest.approx(rows, rel=0.3, abs=1)


@pytest.mark.slow
def test_run_says_it_before_the_first_unit(tmp_path):
    path = write_corpus(tmp_path, num_samples=400)
    code, _, err = koe("run", "-c", str(path), "--to", "interleave", "--set", PUBLISHED)
    assert code == 0
    lines = err.splitlines()
    (said,) = (n for n, line in enumerate(lines) if "interleave.ratio will leave out" in line)
    first = min(n for n, line in enumerate(lines) if line.startswith("tokenize"))
    assert said < first
    engines = [n for n, line in enumerate(lines) if "score: DNSMOS runs on CPUs in FP32" in line]
    engines += [n for n, line in enumerate(lines) if "encode: SNAC runs on CPUs" in line]
    assert len(engines) == 2
    assert max(engines) < first


def test_a_source_that_cannot_be_read_is_named_and_stops_nothing(tmp_path):
    path = write_corpus(tmp_path)
    plan = plan_run(load_config(path), QUIET)
    (tmp_path / "samples.jsonl").write_text("{}\n")  # changed since it was planned
    found = forecast(Assembly(load_config(path)), plan, lambda: 0.0)
    assert found.rows[TEXT] == 0
    assert found.rows[SPEECH] > 0
    (unread,) = found.unread
    assert unread.startswith("text (StorageError: ")


def test_when_time_is_up_other_sources_are_taken_to_be_alike(tmp_path):
    path = write_corpus(tmp_path)
    config = yaml.safe_load(path.read_text())
    (text,) = config["sources"]["text"]
    config["sources"]["text"] = [text, text | {"name": "again"}]
    path.write_text(yaml.safe_dump(config))
    settings = load_config(path)
    plan, assembly = plan_run(settings, QUIET), Assembly(settings)
    times = iter([0.0, 1.0, 1.0, 9.0])
    found = forecast(assembly, plan, lambda: next(times))
    assert found.rows == forecast(assembly, plan, lambda: 0.0).rows
    assert found.records[TEXT] == 80


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("modality", ["speech", "text"])
def test_a_glob_that_matches_nothing_is_refused_before_anything_is_looked_for(
    tmp_path, monkeypatch, command, modality
):
    path = write_corpus(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["sources"][modality][0]["paths"] = ["nowhere/*.jsonl"]
    config["snac"] = {"weights": "some-owner/some-codec"}
    config["train"]["base_model"] = "some-owner/some-model"
    path.write_text(yaml.safe_dump(config))

    def refuse(*arguments, **options):
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr("stages.snac.weights.hf_hub_download", refuse)
    monkeypatch.setattr("pipeline.jobs.run.check_training", refuse)
    monkeypatch.setattr("pipeline.jobs.run.make_plan", refuse)
    code, out, err = koe(command, "-c", str(path))
    assert (code, out) == (2, "")
    assert "nothing matches it" in " ".join(err.split())
    assert not (tmp_path / "run/config.json").exists()


def test_sources_are_checked_before_the_codec(tmp_path):
    config = _config(tmp_path, "snac.weights=some-owner/some-codec")
    config.sources.text[0].paths[:] = [str(tmp_path / "nowhere*.jsonl")]
    with pytest.raises(ConfigError, match="nothing matches it"):
        run_job(config, select_stages(None, None, None, ()), QUIET)
