import json
import os
import signal
import threading

import pytest
import torch

from koe.errors import ConfigError, StageError
from tests.koe.listening import listeners, reachable_from_elsewhere
from tests.training.helpers import (
    VOCABULARY,
    assert_same_weights,
    saved_tensors,
    small_config,
    small_shards,
)
from tests.training.remote import remote_shards
from training.__main__ import main
from training.config import GuardConfig, TrainConfig
from training.launch import check, launch
from training.metrics import EVENTS_FILE, read_metrics
from training.on_ray import session


def events(out_dir):
    path = out_dir / EVENTS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_default_config_is_refused_without_a_gpu():
    with pytest.raises(ConfigError, match=r"no usable GPU.*train.device: cpu.*--to interleave"):
        check(TrainConfig())


def test_too_few_gpus_are_refused_with_a_batch_that_fits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"2 GPUs.*train.workers: 2.*stays 64"):
        check(TrainConfig())
    check(TrainConfig(workers=2, accumulation_steps=16))
    check(TrainConfig(), ray_address="auto")  # the cluster is asked once it is reached


def test_too_few_cpus_are_refused_instead_of_waiting():
    with pytest.raises(ConfigError, match=r"3 workers need 3 CPUs because this machine has 2"):
        check(small_config(launcher="ray", workers=3), num_cpus=2)
    check(small_config(launcher="ray", workers=2), num_cpus=2)


def test_fp16_and_inline_workers_are_refused():
    with pytest.raises(ConfigError, match="fp16: its largest number is 65,504"):
        check(small_config(precision="fp16"))
    with pytest.raises(ConfigError, match="inline cannot run 2 workers"):
        check(small_config(workers=2))


def test_inline_trains_and_says_what_it_left(tmp_path):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    result = launch(small_config(max_steps=3), shards, out, last_rows=2)
    assert result.steps == 3
    assert [row["step"] for row in result.last_rows] == [2, 3]
    assert (out / "metrics.jsonl").exists()
    assert (out / "checkpoints/step-00000003").exists()
    assert list((out / "tensorboard").iterdir())
    with pytest.raises(ConfigError, match="holds checkpoints"):
        launch(small_config(max_steps=3), shards, out, resume=False)
    assert launch(small_config(max_steps=4), shards, out).steps == 4


def test_the_module_trains_and_returns_exit_codes(tmp_path, capsys):
    shards = small_shards(tmp_path / "shards")
    path = tmp_path / "train.json"
    options = ["--config", str(path), "--shards", str(shards), "--out", str(tmp_path / "out")]
    path.write_text(small_config(max_steps=1).model_dump_json())
    assert main(options) == 0
    assert len(read_metrics(tmp_path / "out")) == 1
    path.write_text(json.dumps({"seed": 0, "train": small_config(max_steps=2).model_dump()}))
    assert main(options) == 0, "the config of a whole run serves too"
    assert len(read_metrics(tmp_path / "out")) == 2
    path.write_text("[")
    assert main(options) == 2
    assert "cannot be read as JSON" in capsys.readouterr().err
    path.write_text('{"learning_rat": 1}')
    assert main(options) == 2
    assert "learning_rat" in capsys.readouterr().err
    path.write_text(small_config(max_steps=1).model_dump_json())
    options[3] = str(tmp_path)
    assert main(options) == 1
    assert "no index.json" in capsys.readouterr().err


@pytest.fixture(scope="module")
def local_ray(s3):  # whose endpoint the workers must know
    with session(None, 2):  # as koe starts it, once for all tests here
        yield


def kill_worker_after(out_dir, steps, ended):
    """Kill the training worker as soon as it has done `steps` steps, unless training has `ended`."""
    while len(read_metrics(out_dir)) < steps:
        if ended.wait(0.01):
            return
    os.kill(events(out_dir)[0]["process"], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_ray_restarts_a_killed_worker_from_its_checkpoint(tmp_path, capfd):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    config = small_config(launcher="ray", max_steps=30, cpus_per_worker=1)
    ended = threading.Event()
    killer = threading.Thread(target=kill_worker_after, args=(out, 5, ended))
    killer.start()
    try:
        result = launch(config, shards, out)
    finally:
        ended.set()
        killer.join()
    assert result.steps == 30
    first, second = (event for event in events(out) if event["event"] == "started")
    assert first["step"] == 0
    assert second["step"] >= 2  # that of step 4 may not have been committed yet
    assert first["process"] != second["process"]
    assert [row["step"] for row in read_metrics(out)] == list(range(1, 31))
    shown = capfd.readouterr()
    assert (shown.out + shown.err).count("step 30/30") <= 1, "Ray shows lines of print() twice"

    launch(config.model_copy(update={"launcher": "inline"}), shards, tmp_path / "whole")
    assert_same_weights(*(saved_tensors(path, 30, config) for path in (out, tmp_path / "whole")))


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_ray_hands_back_the_workers_own_error_at_once(tmp_path):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    guard = GuardConfig(enabled=False)
    config = small_config(
        launcher="ray", learning_rate=1e30, max_gradient_norm=1e30, warmup_steps=1, guard=guard
    )
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(StageError, match=r"stopped at step 2 because .*The step was not applied"):
        launch(config, shards, out)
    assert [event["event"] for event in events(out)] == ["started", "stop"]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_cluster_too_small_is_refused(tmp_path):
    shards = small_shards(tmp_path / "shards")
    with pytest.raises(ConfigError, match="the Ray cluster has 2"):
        launch(small_config(launcher="ray", workers=3), shards, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_ray_trains_from_url_to_url_and_shows_no_line_of_a_library(s3, tmp_path, capfd):
    folder, url = remote_shards(
        tmp_path / "shards", s3.make_bucket("ray") + "/shards", vocabulary=VOCABULARY
    )
    config = small_config(launcher="ray", max_steps=2, cpus_per_worker=1)
    assert launch(config, url, "s3://ray/train").steps == 2
    shown = "".join(capfd.readouterr())
    assert "redentials" not in shown
    launch(config.model_copy(update={"launcher": "inline"}), folder, tmp_path / "here")
    assert_same_weights(
        *(saved_tensors(out, 2, config) for out in ("s3://ray/train", tmp_path / "here"))
    )


def watch(found, ended):
    """Collect what the processes of the training listen on, until it has `ended`."""
    while not ended.wait(0.05):
        found |= set(listeners())


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_ranks_on_a_local_ray_listen_on_the_loopback_interface_alone(tmp_path):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    config = small_config(launcher="ray", workers=2, accumulation_steps=1, cpus_per_worker=1)
    found, ended = set(), threading.Event()
    watcher = threading.Thread(target=watch, args=(found, ended))
    watcher.start()
    try:
        assert launch(config, shards, out).steps == config.max_steps
    finally:
        ended.set()
        watcher.join()
    # each rank listens for Ray, and for the other rank
    assert len({item for item in found if "RayTrainW" in item.process}) >= 4, sorted(found)
    assert reachable_from_elsewhere(sorted(found)) == []
