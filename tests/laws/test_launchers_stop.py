"""Law: what `koe train`, torchrun and Ray are told, their ranks do: they stop together, with the code and
message of the table in docs/training.md, and go on to the bits of a run that was never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from koe.errors import Stopped
from tests.calling import koe
from tests.laws.test_training_stops import (
    CODES,
    STEPS,
    assert_goes_on_to,
    config_for,
    last_step,
    shards,
    whole,
)
from tests.training.helpers import one_thread
from tests.training.started import SECONDS, no_signal_ignored, steps_in, until
from training.launch import launch
from training.on_ray import session

__all__ = ["no_signal_ignored", "one_thread", "shards", "whole"]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def local_ray():
    with session(None, 2):
        yield


@pytest.mark.slow
@pytest.mark.law
@pytest.mark.usefixtures("local_ray", "no_signal_ignored")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_driver_of_ray_hands_a_signal_to_its_workers(whole, shards, tmp_path, number):
    out, ended = tmp_path / "out", threading.Event()
    config = config_for(2, launcher="ray", cpus_per_worker=1)
    handler = signal.getsignal(number)

    def send() -> None:
        while steps_in(out) < 4:
            if ended.wait(0.005):
                return
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(Stopped, match=r"training was stopped after step \d+ of 100") as caught:
            launch(config, shards, out)
    finally:
        ended.set()
        sender.join()
    assert caught.value.exit_code == CODES[number]
    assert signal.getsignal(number) is handler
    assert f"after step {last_step(out)} of" in str(caught.value)
    assert_goes_on_to(whole(2), out, 2, shards)


@pytest.fixture
def run_dir(tmp_path, shards) -> Path:
    """Make a run directory that holds shards, and a configuration beside it."""
    shutil.copytree(shards, tmp_path / "run" / "shards")
    source = {"name": "clips", "kind": "manifest", "paths": ["none.jsonl"]}
    train = config_for(
        2, launcher="ray", cpus_per_worker=1, max_steps=3000, allow=["many_epochs", "few_sequences"]
    )
    config = {
        "run_dir": str(tmp_path / "run"),
        "ray": {"num_cpus": 2},
        "sources": {"speech": [source]},
        "train": train.model_dump(),
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.law
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_koe_train_on_ray(run_dir, presses):
    config, out = run_dir.parent / "pipeline.yaml", run_dir / "train"
    process = subprocess.Popen(
        [sys.executable, "-c", "from pipeline.cli import main; main()", "train", "-c", str(config)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until(lambda: steps_in(out) >= 4 or process.poll() is not None)
    started = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    worker = started[0]["process"]
    if presses == 2:
        os.kill(worker, signal.SIGSTOP)  # the step in progress never ends
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    if presses == 2:
        time.sleep(1.5)
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, errors
    if presses == 2:
        assert "ended at once by SIGINT" in errors
        until(lambda: not Path(f"/proc/{worker}").exists())
    else:
        step = max(path.name for path in (out / "checkpoints").glob("step-*"))
        assert step == f"step-{steps_in(out):08d}"
        assert f"koe: training was stopped after step {steps_in(out)} of 3000" in errors
        assert f"Go on with: koe train -c {config}" in errors


@pytest.mark.slow
@pytest.mark.law
def test_torchrun_stops_its_ranks_with_a_checkpoint(whole, shards, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "config.json").write_text(config_for(2).model_dump_json())
    options = [
        "--config",
        str(tmp_path / "config.json"),
        "--shards",
        str(shards),
        "--out",
        str(out),
    ]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    process = subprocess.Popen(
        [*torchrun, "-m", "training", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    until(lambda: steps_in(out) >= 4 or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=SECONDS)
    assert f"training was stopped after step {last_step(out)} of {STEPS} because" in said
    assert "-m torch.distributed.run --standalone --nproc-per-node 2 -m training" in said
    assert process.returncode == 1, "torchrun's own, whatever its ranks'"
    assert_goes_on_to(whole(2), out, 2, shards)


@pytest.mark.parametrize("command", ["train", "run"])
def test_the_hours_end_a_command_with_the_one_to_go_on_with(finished_run, tmp_path, command):
    shutil.copytree(finished_run.parent / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "train", ignore_errors=True)
    settings = (f"run_dir={tmp_path / 'run'}", "train.max_hours=1e-9")
    chosen = ["-c", str(finished_run), *(word for s in settings for word in ("--set", s))]
    code, _, errors = koe(command, *chosen)
    assert code == 75, errors
    assert "after step 0 of 2 because train.max_hours have passed" in errors
    assert f"Go on with: koe train {' '.join(chosen)}" in errors
    assert (tmp_path / "run/train/checkpoints/step-00000000/manifest.json").exists()
