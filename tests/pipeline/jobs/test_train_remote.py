"""`koe train`, `koe train --replay`, its report and `koe export` with a run directory at a URL."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load

from koe.errors import ConfigError
from pipeline.config.models import PipelineConfig
from pipeline.jobs.exports import export_run
from pipeline.jobs.train import check_training, replay_event, run_training, training_place
from tests.training.helpers import SMALLEST, one_thread
from tests.training.remote import upload
from tests.training.shards import write_shards
from training.launch import launch
from training.metrics import read_events, read_metrics
from training.on_ray import session
from training.places import RemoteFolder
from training.report import write_report

__all__ = ["one_thread"]  # applies to every test here

TRAIN = {
    **SMALLEST,
    "max_steps": 2,
    "evaluation": {"every_steps": 0},
    "guard": {"max_gradient_norm": 1e-3, "max_rollbacks": 0},
}


def config_for(run_dir, **changes):
    source = {"name": "clips", "kind": "manifest", "paths": ["none.jsonl"]}
    settings = {"run_dir": str(run_dir), "sources": {"speech": [source]}}
    return PipelineConfig.model_validate({**settings, "train": {**TRAIN, **changes}})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def run_dir(s3, tmp_path_factory):
    """A run directory on S3 that holds nothing but shards."""
    folder = write_shards(tmp_path_factory.mktemp("made"), num_rows=12)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(
        json.dumps(index | {"codec": {"label": "UNTRAINED (seed 0)"}})
    )
    url = s3.make_bucket("jobs") + "/run"
    upload(folder, f"{url}/shards")
    return url


def test_train_replay_report_and_export_at_a_url(run_dir, tmp_path):
    console = Console(file=io.StringIO())
    calm = config_for(run_dir, guard={})
    check_training(calm)
    assert run_training(calm, console).steps == 2
    assert [row["step"] for row in read_metrics(training_place(calm))] == [1, 2]

    strict = config_for(run_dir, max_steps=3)
    with pytest.raises(Exception, match="training was stopped at step 3"):
        run_training(strict, console)
    event = next(e for e in read_events(training_place(strict)) if e["event"] == "skip")
    assert replay_event(strict, event["id"]).loss == pytest.approx(event["loss"], rel=1e-6)
    assert write_report(training_place(strict)) == f"{run_dir}/train/report.html"

    export_run(calm, tmp_path / "model", 2, "fp32")
    export_run(calm, f"{run_dir}/model", 2, "fp32")
    there = RemoteFolder(f"{run_dir}/model")
    assert set(there.sizes()) == {path.name for path in (tmp_path / "model").iterdir()}
    here = load((tmp_path / "model/model.safetensors").read_bytes())
    for name, tensor in load(there.read("model.safetensors")).items():
        assert torch.equal(tensor, here[name])
    assert "UNTRAINED (seed 0)" in there.read("README.md").decode()
    with pytest.raises(ConfigError, match="already exists"):
        export_run(calm, f"{run_dir}/model", 2, "fp32")
    with pytest.raises(ConfigError, match=r"of step 7 because it has .*step-00000002"):
        export_run(calm, f"{run_dir}/other", 7, "fp32")


@pytest.mark.slow
def test_workers_of_ray_train_at_a_url(run_dir):
    config = config_for(run_dir, launcher="ray", guard={}, cpus_per_worker=1).train
    with session(None, 2):
        assert launch(config, f"{run_dir}/shards", f"{run_dir}/on-ray").steps == 2
    assert [row["step"] for row in read_metrics(f"{run_dir}/on-ray")] == [1, 2]
    assert any(name.startswith("ray/") for name in RemoteFolder(f"{run_dir}/on-ray").sizes())
