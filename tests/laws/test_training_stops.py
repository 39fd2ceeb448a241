"""Law: whatever tells a training to stop, in whatever launcher, it ends with a checkpoint of the very
step it did last, with the code of what stopped it, and goes on to the same bits."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from koe.errors import Stopped
from tests.training.helpers import (
    assert_same_weights,
    one_thread,
    saved_tensors,
    small_config,
    small_shards,
    spoil_batches,
)
from tests.training.ranks import run_ranks
from tests.training.started import Ranks, start_ranks, steps_in, until
from training import loop
from training.config import GuardConfig, TrainConfig
from training.metrics import read_events, read_metrics
from training.model.distributed import single
from training.stopping import Why, never

__all__ = ["one_thread"]  # applies to every test here

STEPS = 100
WORLDS = {1: 2, 2: 1}  # ranks: micro-batches of each
TIMES = {"seconds", "tokens_per_second", "data_wait_seconds"}
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 75}


def config_for(world: int, **changes) -> TrainConfig:
    settings = {
        "workers": world,
        "accumulation_steps": WORLDS[world],
        "max_steps": STEPS,
        "checkpoint_every_steps": 1000,
    }
    return small_config(**{**settings, **changes})


def train_as(ranks, config, shards, out):
    loop.train(config, shards, out, ranks)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return small_shards(tmp_path_factory.mktemp("stops") / "shards", num_rows=60)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """Return the folder of a run that nothing stopped, by its number of ranks."""
    folder = tmp_path_factory.mktemp("whole")

    def find(world: int) -> Path:
        out = folder / str(world)
        if not out.exists():
            run_ranks(train_as, world, config_for(world), shards, out)
        return out

    return find


def last_step(out: Path) -> int:
    """Assert that the newest checkpoint is that of the last step, and return the step."""
    step = read_metrics(out)[-1]["step"]
    assert 0 < step < STEPS
    newest = max(path.name for path in (out / "checkpoints").glob("step-*"))
    assert newest == f"step-{step:08d}"
    event = read_events(out)[-1]
    assert (event["event"], event["step"]) == ("stopped", step)
    return step


def logged(out: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(out)]


def newest_files(out: Path) -> list[tuple[str, int]]:
    """Name the checkpoints, with the times at which they were written."""
    manifests = sorted((out / "checkpoints").glob("step-*/manifest.json"))
    return [(path.parent.name, path.stat().st_mtime_ns) for path in manifests]


def assert_goes_on_to(whole: Path, out: Path, world: int, shards: Path) -> None:
    """Resume, and compare weights, moments, random states and metrics with the run never stopped."""
    run_ranks(train_as, world, config_for(world), shards, out)
    one = config_for(1)
    assert_same_weights(*(saved_tensors(place, STEPS, one) for place in (whole, out)))
    assert logged(out) == logged(whole)
    for rank in range(world):
        name = f"checkpoints/step-{STEPS:08d}/rng-{rank:05d}.pt"
        assert (whole / name).read_bytes() == (out / name).read_bytes()


@pytest.fixture
def started(tmp_path, shards):
    """Start trainings as srun does, and leave none behind."""
    running: list[Ranks] = []

    def start(world: int, **changes) -> Ranks:
        config = config_for(world, **changes)
        running.append(start_ranks(config, shards, tmp_path / "out", tmp_path / "processes"))
        return running[-1]

    yield start
    for ranks in running:
        ranks.kill()


@pytest.mark.slow
@pytest.mark.law
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("number", CODES)
def test_a_signal_stops_all_ranks_at_one_step_and_the_run_goes_on_to_the_same_bits(
    started, whole, shards, world, number
):
    ranks = started(world)
    ranks.reached(4)
    ranks.send(number, world - 1)  # one rank hears of it, and not the first
    assert ranks.codes() == [CODES[number]] * world
    said = ranks.said()
    step = last_step(ranks.out)
    assert f"training was stopped after step {step} of {STEPS} because" in said[0]
    assert "Go on with: python -m training --config" in said[0]
    assert all("Traceback" not in text for text in said)
    assert said[1:] == [""] * (world - 1), "one rank speaks for all"
    assert_goes_on_to(whole(world), ranks.out, world, shards)


@pytest.mark.slow
@pytest.mark.law
def test_a_second_signal_ends_at_once_even_where_the_other_ranks_never_answer(started):
    ranks = started(2, max_steps=10_000)
    ranks.reached(2)
    ranks.send(signal.SIGSTOP, 1)  # the first rank now waits without end
    ranks.send(signal.SIGTERM, 0)
    until(lambda: "stopping after the step" in ranks.said()[0], ranks.all_alive)
    ranks.send(signal.SIGTERM, 0)  # that of a launcher that passes it on: no second one
    time.sleep(1.2)
    assert ranks.all_alive()
    ranks.send(signal.SIGTERM, 0)
    ranks.processes[0].join(60)
    assert ranks.processes[0].exitcode == 143
    assert "ended at once by SIGTERM" in ranks.said()[0]


@pytest.mark.slow
def test_a_second_training_of_the_same_folder_is_refused_on_all_ranks(started, tmp_path, shards):
    first = started(1, max_steps=10_000)
    first.reached(1)
    second = start_ranks(config_for(2), shards, first.out, tmp_path / "second")
    assert second.codes() == [2, 2]
    assert f"process {first.processes[0].pid} on" in second.said()[0]
    assert first.all_alive()


def stop_at(steps: int, why: Why):
    """Return what asks to stop once it was looked at so often: before the first step, then in each."""
    looks = iter(range(10**6))
    return lambda: why if next(looks) >= steps else Why.GO_ON


@pytest.mark.law
def test_a_stop_at_any_batch_leaves_the_bits_as_they_are(tmp_path, shards, monkeypatch):
    """Also where the guard skips the step in which it is asked for, or goes back."""
    ladder = GuardConfig(
        lower_rate_after_skips=2, roll_back_after_skips=3, roll_back_steps=2, skip_data_steps=1
    )
    config = config_for(1, max_steps=8, checkpoint_every_steps=2, guard=ladder)
    spoil_batches(monkeypatch, bad={2, 5, 6, 7})

    def train(out: Path, asked=never) -> int:
        return loop.train(config, shards, out, single("cpu"), asked=asked)

    assert train(tmp_path / "whole") == 8
    batches = len(read_metrics(tmp_path / "whole"))
    events = [event["event"] for event in read_events(tmp_path / "whole")]
    assert {"skip", "lower_rate", "rolled_back"} <= set(events)
    for place in range(batches):
        out = tmp_path / str(place)
        with pytest.raises(Stopped, match=r"of 8 because train.max_hours"):
            train(out, stop_at(place, Why.TIME))
        assert len(read_metrics(out)) == place
        before = newest_files(out)
        with pytest.raises(Stopped):
            train(out, lambda: Why.TIME)
        if place:  # the checkpoint of step 0 is written at every start
            assert newest_files(out) == before, "nothing was done, so nothing is written again"
        assert train(out) == 8
        assert_same_weights(*(saved_tensors(run, 8, config) for run in (tmp_path / "whole", out)))
        assert logged(out) == logged(tmp_path / "whole")
    assert train(tmp_path / "last", stop_at(batches, Why.TERMINATE)) == 8, "it is done"


@pytest.mark.slow
@pytest.mark.law
def test_the_hours_stop_all_ranks_and_the_same_command_goes_on(started, whole, shards):
    ranks = started(2, max_hours=1e-9)
    assert ranks.codes() == [75, 75]
    assert "because train.max_hours have passed" in ranks.said()[0]
    assert steps_in(ranks.out) == 0
    (manifest,) = (ranks.out / "checkpoints").glob("step-*/manifest.json")
    assert json.loads(manifest.read_text())["progress"]["steps"] == 0
    assert_goes_on_to(whole(2), ranks.out, 2, shards)
