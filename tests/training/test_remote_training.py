"""Training on object storage: the same weights as on a local disk, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from koe.errors import ConfigError, ContractError, StorageError
from tests.training.helpers import (
    VOCABULARY,
    assert_same_weights,
    one_thread,
    saved_tensors,
    small_config,
    spoil_batches,
)
from tests.training.ranks import run_ranks
from tests.training.remote import cached_bytes, gigabytes, memory_url, remote_shards
from training import loop
from training.__main__ import main
from training.config import EvaluationConfig, GuardConfig
from training.launch import check, launch
from training.metrics import read_events, read_metrics
from training.model.distributed import single
from training.places import RemoteFolder
from training.replay import replay
from training.report import write_report

__all__ = ["one_thread"]  # applies to every test here

RANKS = single("cpu")
TIMES = {"seconds", "tokens_per_second", "data_wait_seconds"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("KOE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def bucket(s3):
    return s3.make_bucket("run")


def shards_in(tmp_path, url, **changes):
    settings = {"vocabulary": VOCABULARY, "num_rows": 24, "num_shards": 6, **changes}
    return remote_shards(tmp_path / "shards", url, **settings)


def logged(out):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(out)]


def test_a_run_on_s3_is_that_on_a_disk_through_failed_requests(s3, bucket, tmp_path, cache):
    folder, url = shards_in(tmp_path, f"{bucket}/whole/shards")
    out = f"{bucket}/whole/train"
    evaluation = EvaluationConfig(every_steps=2, prompts=0)
    config = small_config(evaluation=evaluation, shard_cache_gigabytes=gigabytes(folder, 6))
    loop.train(config, folder, tmp_path / "local", RANKS)
    s3.fail(share=0.1)
    try:
        assert loop.train(config, url, out, RANKS) == 6
    finally:
        s3.fail()
    assert_same_weights(*(saved_tensors(place, 6, config) for place in (tmp_path / "local", out)))
    assert 0 < cached_bytes(cache) <= config.shard_cache_gigabytes * 1e9
    assert logged(out) == logged(tmp_path / "local")
    assert [event["event"] for event in read_events(out)] == ["started"]
    names = set(RemoteFolder(out).sizes())
    here = {
        str(path.relative_to(tmp_path / "local"))
        for path in (tmp_path / "local").rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }
    assert here == {name for name in names if not name.startswith("tensorboard/")}
    assert any(name.startswith("tensorboard/") for name in names)
    assert write_report(out) == f"{out}/report.html"
    assert b"training report" in RemoteFolder(out).read("report.html")
    assert [path.name for path in cache.glob("work/*")] == [], "no copies are left behind"


@pytest.mark.slow
@pytest.mark.law
def test_a_run_on_s3_that_is_killed_resumes_on_another_machine(bucket, tmp_path, monkeypatch):
    folder, url = shards_in(tmp_path, f"{bucket}/killed/shards", num_rows=40)
    out, config = f"{bucket}/killed/train", small_config(max_steps=14, checkpoint_every_steps=3)
    loop.train(config, folder, tmp_path / "whole", RANKS)
    (tmp_path / "train.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "training", "--config", str(tmp_path / "train.json")]
    process = subprocess.Popen(
        [*command, "--shards", url, "--out", out], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    remote, deadline = RemoteFolder(out), time.monotonic() + 240
    while "checkpoints/step-00000003/manifest.json" not in remote.sizes():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    monkeypatch.setenv("KOE_CACHE", str(tmp_path / "another"))
    assert loop.train(config, url, out, RANKS) == 14
    assert_same_weights(*(saved_tensors(place, 14, config) for place in (tmp_path / "whole", out)))
    assert logged(out) == logged(tmp_path / "whole")


def test_a_rollback_replay_and_report_at_a_url(tmp_path, monkeypatch):
    folder, url = shards_in(tmp_path, memory_url(), num_rows=60)
    ladder = GuardConfig(
        lower_rate_after_skips=2, roll_back_after_skips=3, roll_back_steps=2, skip_data_steps=1
    )
    config = small_config(max_steps=8, guard=ladder)
    for place, shards in ((tmp_path / "local", folder), (f"{url}/train", url)):
        with pytest.MonkeyPatch.context() as patch:
            spoil_batches(patch, bad={5, 6, 7})
            loop.train(config, shards, place, RANKS)
    assert_same_weights(
        *(saved_tensors(place, 8, config) for place in (tmp_path / "local", f"{url}/train"))
    )
    events = read_events(f"{url}/train")
    assert "rolled_back" in [event["event"] for event in events]
    event = next(event for event in events if event["event"] == "skip")
    again = [
        replay(config, shards, place, event["id"])
        for place, shards in ((tmp_path / "local", folder), (f"{url}/train", url))
    ]
    assert again[0].loss == again[1].loss
    assert again[0].documents == again[1].documents
    with pytest.raises(ConfigError, match=rf"{url}/train/events.jsonl has no event E9999"):
        replay(config, url, f"{url}/train", "E9999")


def train_as(ranks, config, shards, out):
    loop.train(config, shards, out, ranks)


@pytest.mark.slow
def test_ranks_without_a_shared_disk_write_and_load_one_checkpoint(bucket, tmp_path):
    folder, url = shards_in(tmp_path, f"{bucket}/ranks/shards")
    config = small_config(workers=2, accumulation_steps=1, max_steps=2)
    run_ranks(train_as, 2, config, url, f"{bucket}/ranks/train")
    more = config.model_copy(update={"max_steps": 4})
    run_ranks(train_as, 2, more, url, f"{bucket}/ranks/train")
    run_ranks(train_as, 2, config, folder, tmp_path / "local")
    run_ranks(train_as, 2, more, folder, tmp_path / "local")
    one = small_config(workers=1, accumulation_steps=2)
    assert_same_weights(
        *(saved_tensors(out, 4, one) for out in (tmp_path / "local", f"{bucket}/ranks/train"))
    )


def test_the_module_trains_from_url_to_url(bucket, tmp_path, capsys):
    folder, url = shards_in(tmp_path, f"{bucket}/module/shards")
    (tmp_path / "train.json").write_text(small_config(max_steps=2).model_dump_json())
    options = ["--config", str(tmp_path / "train.json"), "--shards", url]
    options += ["--out", f"{bucket}/module/train"]
    assert main(options) == 0
    assert len(read_metrics(f"{bucket}/module/train")) == 2
    remote = RemoteFolder(url)
    data = bytearray(remote.read("train-00000.arrow"))
    data[2000] ^= 1  # a token
    remote.write("train-00000.arrow", bytes(data))
    (tmp_path / "cache").rename(tmp_path / "before")
    options[-1] = f"{bucket}/module/again"
    assert main(options) == 1
    assert (
        f"{url}/train-00000.arrow is not the one that index.json names" in capsys.readouterr().err
    )
    assert (folder / "train-00000.arrow").exists()


def test_what_cannot_work_is_refused_before_any_work(tmp_path, monkeypatch):
    _, url = shards_in(tmp_path, memory_url())
    with pytest.raises(ConfigError, match=r"memory of this process because train.launcher: ray"):
        check(small_config(launcher="ray"), num_cpus=2, place=url)
    with pytest.raises(ConfigError, match="cannot be opened"):
        check(small_config(), place="nothing://run/train")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KOE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"Set KOE_CACHE"):
        check(small_config(), place=f"{url}/train")


def test_a_url_that_cannot_be_written_stops_the_run_before_its_first_step(tmp_path, monkeypatch):
    _, url = shards_in(tmp_path, memory_url())
    steps = spoil_batches(monkeypatch, bad=set())

    def refuse(*args, **kwargs):
        raise PermissionError("no access")

    monkeypatch.setattr(type(RemoteFolder(url).system), "put_file", refuse)
    with pytest.raises(StorageError, match=r"cannot be written because PermissionError: no access"):
        loop.train(small_config(), url, f"{url}/train", RANKS)
    assert steps == []


def test_launch_says_what_it_left_at_a_url(tmp_path):
    _, url = shards_in(tmp_path, memory_url())
    out, config = f"{url}/train", small_config(max_steps=3)
    result = launch(config, url, out, last_rows=2)
    assert [row["step"] for row in result.last_rows] == [2, 3]
    with pytest.raises(ConfigError, match=rf"{out}/checkpoints holds checkpoints"):
        launch(config, url, out, resume=False)
    assert launch(small_config(max_steps=4), url, out).steps == 4
    index = json.loads(RemoteFolder(url).read("index.json"))
    index["shards"][0]["sha256"] = "0" * 64
    RemoteFolder(url).write("index.json", json.dumps(index).encode())
    with pytest.raises(ContractError, match=r"train-00000.arrow"):
        launch(config, url, f"{url}/other")
