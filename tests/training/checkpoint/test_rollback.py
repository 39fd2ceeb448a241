import shutil

import pytest

from tests.training.helpers import (
    assert_same_weights,
    saved_tensors,
    small_config,
    small_shards,
    spoil_batches,
)
from training import loop
from training.checkpoint import rollback
from training.checkpoint.local import LocalCheckpoints
from training.checkpoint.tensor_files import checkpoint_tensors
from training.config import GuardConfig
from training.metrics import RunLog, read_events, read_metrics
from training.model.distributed import single
from training.model.schedule import learning_rate
from training.run import open_run

RANKS = single("cpu")

LADDER = GuardConfig(
    window_steps=8, lower_rate_after_skips=2, roll_back_after_skips=4, within_steps=20,
    roll_back_steps=3, skip_data_steps=5, max_rollbacks=1,
)  # fmt: skip


def test_repeated_spikes_lower_the_rate_then_roll_back_and_skip_the_data(tmp_path, monkeypatch):
    shards, out = small_shards(tmp_path / "shards", num_rows=40), tmp_path / "out"
    config = small_config(max_steps=12, checkpoint_every_steps=2, guard=LADDER, keep_checkpoints=2)
    taken = spoil_batches(monkeypatch, bad={9, 10, 11, 12})
    assert loop.train(config, shards, out, RANKS) == 12
    # Steps 1 to 9 are batches 0 to 8; four bad ones; back to step 6 at most, five left out.
    assert taken == [*range(13), *range(18, 24)]
    kinds = [event["event"] for event in read_events(out)]
    assert kinds == ["started", "skip", "lower_rate", "skip", "roll_back", "rolled_back"]
    back = read_events(out)[-1]
    assert (back["step"], back["data_step"]) == (6, 18)
    assert "from step 9 to 6; batches 13 to 17 are left out" in back["reason"]
    rows = read_metrics(out)
    assert [row["data_step"] for row in rows] == [*range(1, 14), *range(19, 25)]
    assert [row["step"] for row in rows[13:]] == list(range(7, 13))
    assert rows[13]["rate_factor"] == 0.5, "what was lowered stays so"
    assert rows[13]["learning_rate"] == 0.5 * learning_rate(6, config)


def test_weights_after_a_rollback_are_those_of_the_checkpoint_trained_on_the_later_data(
    tmp_path, monkeypatch
):
    shards = small_shards(tmp_path / "shards", num_rows=40)
    config = small_config(
        max_steps=7, checkpoint_every_steps=2, guard=LADDER, keep_checkpoints=2, ema_decay=0.9
    )
    with pytest.MonkeyPatch.context() as patch:
        spoil_batches(patch, bad={6, 7, 8, 9})
        loop.train(config, shards, tmp_path / "out", RANKS)
    clean = config.model_copy(update={"guard": GuardConfig(enabled=False)})
    with open_run(clean, shards, tmp_path / "plain", RANKS, None) as run:
        for _ in range(2):
            loop.take_step(run)
        run.progress = run.progress.after(False, 0)
        for data_step in range(15, 20):  # step 2, then batches 15 on
            object.__setattr__(run.progress, "data_steps", data_step)
            run.guard._state.lowerings = 1
            loop.take_step(run)
        tensors = checkpoint_tensors(run.model, run.optimizer, run.average)
        expected = {n: t.clone() for n, t in tensors.items()}
    assert_same_weights(saved_tensors(tmp_path / "out", 7, config), expected)


@pytest.mark.slow
def test_a_kill_after_a_rollback_resumes_behind_the_left_out_data(tmp_path, monkeypatch):
    shards = small_shards(tmp_path / "shards", num_rows=40)
    config = small_config(max_steps=12, checkpoint_every_steps=2, guard=LADDER, keep_checkpoints=2)

    class Killed(Exception):
        pass

    def run_with(out, killed_at):
        with pytest.MonkeyPatch.context() as patch:
            taken = spoil_batches(patch, bad={9, 10, 11, 12})
            if killed_at is not None:

                def step(self, row, step=RunLog.step):
                    step(self, row)
                    if row["data_step"] == killed_at:
                        raise Killed

                patch.setattr(RunLog, "step", step)
                with pytest.raises(Killed):
                    loop.train(config, shards, out, RANKS)
            else:
                loop.train(config, shards, out, RANKS)
        return taken

    whole = run_with(tmp_path / "whole", None)
    for killed_at in (11, 13, 19, 22):
        out = tmp_path / f"killed{killed_at}"
        run_with(out, killed_at)
        again = run_with(out, None)
        assert set(again) <= set(whole)
        assert_same_weights(
            *(saved_tensors(path, 12, config) for path in (tmp_path / "whole", out))
        )
        assert [row["data_step"] for row in read_metrics(out)] == [
            row["data_step"] for row in read_metrics(tmp_path / "whole")
        ]


def test_one_rollback_too_many_stops_with_the_event_named(tmp_path, monkeypatch):
    shards, out = small_shards(tmp_path / "shards", num_rows=40), tmp_path / "out"
    config = small_config(max_steps=12, checkpoint_every_steps=2, guard=LADDER)
    spoil_batches(monkeypatch, bad=set(range(6, 1000)))
    with pytest.raises(loop.Exploded, match=r"after 1 rollbacks.*events.jsonl.*--replay"):
        loop.train(config, shards, out, RANKS)
    assert [e["event"] for e in read_events(out)][-4:] == [
        "skip", "lower_rate", "skip", "stop",
    ]  # fmt: skip


@pytest.mark.parametrize("lost", ["the target", "all"])
def test_a_record_whose_checkpoint_is_gone_abandons_nothing_later(tmp_path, lost):
    """The run goes on from an older checkpoint; its new ones must survive the resume after that."""
    shards, out = small_shards(tmp_path / "shards", num_rows=40), tmp_path / "out"
    config = small_config(max_steps=7, checkpoint_every_steps=2, guard=LADDER, keep_checkpoints=2)
    with pytest.MonkeyPatch.context() as patch:
        spoil_batches(patch, bad={6, 7, 8, 9})
        loop.train(config, shards, out, RANKS)
    folder = out / "checkpoints"
    store = LocalCheckpoints(folder)
    found = rollback.read_record(store)
    assert found is not None
    assert (found.steps, found.data_steps) == (2, 15)
    for path in folder.glob("step-*"):
        if lost == "all" or int(path.name[5:]) >= found.steps:
            shutil.rmtree(path)
    again = small_config(max_steps=6, checkpoint_every_steps=2, guard=LADDER, keep_checkpoints=9)
    assert loop.train(again, shards, out, RANKS) == 6
    assert rollback.read_record(store) is None
    resumed = rollback.resume_point(store, lambda message: None)
    assert resumed is not None
    assert resumed[0].path == store.place_of(6)
    assert resumed[0].progress.data_steps == 6 < found.data_steps
