"""A run that keeps its best checkpoint, stops when the validation loss does, and averages weights."""

import json
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from koe.errors import ConfigError
from tests.training.helpers import (
    assert_same_weights,
    saved_tensors,
    small_config,
    small_shards,
    spoil_batches,
)
from training import loop
from training import run as runs
from training.checkpoint import folder as checkpoints
from training.checkpoint.local import LocalCheckpoints
from training.config import EarlyStoppingConfig, EvaluationConfig, GuardConfig
from training.evaluation import evaluate
from training.logs import EVALUATIONS_FILE
from training.metrics import read_events, read_metrics
from training.model.distributed import single
from training.run import open_run

RANKS = single("cpu")
EVERY_STEP = EvaluationConfig(every_steps=1, max_rows=2, prompts=0)
NEVER_ENOUGH = EarlyStoppingConfig(evaluations=2, min_improvement=100)


def evaluations_of(out):
    return [json.loads(line) for line in (out / EVALUATIONS_FILE).read_text().splitlines()]


def script_losses(monkeypatch, losses):
    """Let the validation loss of each step be a given one."""

    def scripted(model, rows, ranks, config, evaluate=evaluate):
        return replace(evaluate(model, rows, ranks, config), loss=losses.pop(0))

    monkeypatch.setattr(runs, "evaluate", scripted)


def test_a_run_stops_where_the_loss_does_and_goes_on_if_asked(tmp_path, capsys):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    settings = {"checkpoint_every_steps": 100, "evaluation": EVERY_STEP}
    config = small_config(**settings, early_stopping=NEVER_ENOUGH)
    assert loop.train(config, shards, out, RANKS) == 3, "the first is one, two after it are none"
    event = read_events(out)[-1]
    assert (event["event"], event["step"]) == ("stopped_early", 3)
    assert event["reason"].startswith("the validation loss has not fallen by 100 in 2 evaluations")
    assert LocalCheckpoints(out / "checkpoints").steps() == [0, 3]
    assert event["reason"] in capsys.readouterr().err

    assert loop.train(config, shards, out, RANKS) == 3
    said = capsys.readouterr().err
    assert "nothing to train: 3 of 6 steps are done: the validation loss has not fallen" in said
    assert "train.early_stopping: null" in said
    assert len(read_metrics(out)) == 3

    assert loop.train(small_config(**settings), shards, out, RANKS) == 6
    loop.train(small_config(**settings), shards, tmp_path / "plain", RANKS)
    assert_same_weights(*(saved_tensors(o, 6, config) for o in (out, tmp_path / "plain")))


def test_what_was_counted_survives_a_resume(tmp_path, monkeypatch):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    patient = EarlyStoppingConfig(evaluations=3, min_improvement=100)
    settings = {"checkpoint_every_steps": 1, "evaluation": EVERY_STEP, "early_stopping": patient}
    assert loop.train(small_config(**settings, max_steps=3), shards, out, RANKS) == 3
    longer = {"max_steps": 9, "resume_with_changes": ["max_steps"]}
    assert loop.train(small_config(**settings, **longer), shards, out, RANKS) == 4


def test_early_stopping_needs_something_to_follow(tmp_path):
    shards = small_shards(tmp_path / "shards")
    index = json.loads((shards / "index.json").read_text())
    index["shards"] = [shard for shard in index["shards"] if shard["split"] == "train"]
    (shards / "index.json").write_text(json.dumps(index))
    config = small_config(evaluation=EVERY_STEP, early_stopping=NEVER_ENOUGH)
    with pytest.raises(ConfigError, match=r"no validation split.*validation_share"):
        loop.train(config, shards, tmp_path / "out", RANKS)


def test_the_best_checkpoint_stays_and_every_so_many(tmp_path, monkeypatch):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    script_losses(monkeypatch, [3.0, 1.0, 2.0, 2.5, 2.0, 1.5])
    config = small_config(
        evaluation=EVERY_STEP, checkpoint_every_steps=1, keep_checkpoints=1, keep_every_steps=4,
        keep_weights_only=True, guard=GuardConfig(roll_back_steps=1),
    )  # fmt: skip
    loop.train(config, shards, out, RANKS)
    store = LocalCheckpoints(out / "checkpoints")
    kinds = {steps: store.manifest(steps) for steps in store.steps()}
    assert list(kinds) == [2, 4, 5, 6]
    assert [s for s, m in kinds.items() if m.weights_only] == [2, 4]
    assert [s for s, m in kinds.items() if m.permanent] == [4]
    assert [m.validation_loss for m in kinds.values()] == [1.0, 2.5, 2.0, 1.5]
    found = checkpoints.best(store, print)
    assert found is not None
    assert found.progress.steps == 2
    assert evaluations_of(out)[-1]["lowest"] == {"step": 2, "loss": 1.0}


def test_a_checkpoint_to_keep_is_written_though_no_other_is_due(tmp_path):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    config = small_config(max_steps=7, checkpoint_every_steps=100, keep_every_steps=3)
    loop.train(config, shards, out, RANKS)
    assert LocalCheckpoints(out / "checkpoints").steps() == [0, 3, 6, 7]


LADDER = GuardConfig(
    window_steps=8, lower_rate_after_skips=2, roll_back_after_skips=4, within_steps=20,
    roll_back_steps=3, skip_data_steps=5, max_rollbacks=1,
)  # fmt: skip


def test_after_a_rollback_the_best_is_that_of_the_course_that_is_left(tmp_path, monkeypatch):
    shards, out = small_shards(tmp_path / "shards", num_rows=40), tmp_path / "out"
    config = small_config(
        max_steps=9, checkpoint_every_steps=1, keep_checkpoints=1, guard=LADDER,
        evaluation=EVERY_STEP, ema_decay=0.9, keep_weights_only=True,
        early_stopping=EarlyStoppingConfig(evaluations=8),
    )  # fmt: skip
    # Steps 1 to 8; then a rollback to step 4 undoes the lowest, of step 7. Each has an average too.
    before = [5.0, 2.0, 4.0, 4.0, 4.0, 4.0, 1.0, 4.0]
    after = [3.0, 3.0, 3.0, 3.0, 3.0]
    script_losses(monkeypatch, [x for loss in before + after for x in (loss, loss)])
    spoil_batches(monkeypatch, bad={8, 9, 10, 11})
    assert loop.train(config, shards, out, RANKS) == 9
    rolled = next(event for event in read_events(out) if event["event"] == "rolled_back")
    assert rolled["step"] == 4
    store = LocalCheckpoints(out / "checkpoints")
    found = checkpoints.best(store, print)
    assert found is not None
    assert found.progress.steps == 2
    assert store.manifest(2).weights_only
    assert evaluations_of(out)[-1]["lowest"] == {"step": 2, "loss": 2.0}
    assert read_events(out)[-1]["event"] == "rolled_back", (
        "what was counted on that course is undone"
    )


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path, monkeypatch, loss):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    script_losses(monkeypatch, [loss, loss])
    config = small_config(evaluation=EVERY_STEP, checkpoint_every_steps=1, max_steps=2)
    loop.train(config, shards, out, RANKS)
    assert checkpoints.best(LocalCheckpoints(out / "checkpoints"), print) is None
    assert evaluations_of(out)[-1]["lowest"] == {"step": None, "loss": None}


def test_the_average_is_evaluated_too_and_leaves_the_run_as_it_is(tmp_path, capsys):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    settings = {"max_steps": 4, "evaluation": EVERY_STEP}
    config = small_config(**settings, ema_decay=0.5)
    loop.train(config, shards, out, RANKS)
    loop.train(small_config(**settings), shards, tmp_path / "without", RANKS)
    averaged = saved_tensors(out, 4, config)
    plain = {name: t for name, t in averaged.items() if not name.startswith("ema.")}
    assert_same_weights(plain, saved_tensors(tmp_path / "without", 4, small_config()))
    rows = evaluations_of(out)
    assert [row["loss"] for row in rows] == [
        row["loss"] for row in evaluations_of(tmp_path / "without")
    ]
    assert f"of the averaged weights {rows[-1]['ema_loss']:.4f}; lowest" in capsys.readouterr().err
    with open_run(config, shards, out, RANKS, None) as run, torch.no_grad():
        for name, parameter in run.plain_model.named_parameters():
            parameter.copy_(averaged["ema." + name])
        assert run.validation is not None
        found = evaluate(run.model, run.validation, RANKS, config)
    assert found.loss == rows[-1]["ema_loss"] != rows[-1]["loss"]


def test_an_average_may_begin_and_end_at_a_resume(tmp_path, capsys):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    loop.train(small_config(max_steps=2), shards, out, RANKS)
    longer = {"resume_with_changes": ["max_steps"]}
    with_one = small_config(max_steps=4, ema_decay=0.9, **longer)
    loop.train(with_one, shards, out, RANKS)
    assert "no average of the weights: it begins with them now" in capsys.readouterr().err
    assert any(name.startswith("ema.") for name in saved_tensors(out, 4, with_one))
    loop.train(small_config(max_steps=6, **longer), shards, out, RANKS)
    with closing(LocalCheckpoints(out / "checkpoints")) as store:
        index = json.loads((store.fetch(6) / "tensors.json").read_text())
    assert not any(name.startswith("ema.") for name in index["tensors"])


def test_every_schedule_trains(tmp_path):
    shards = small_shards(tmp_path / "shards")
    last = {}
    for schedule in ("cosine", "linear", "wsd", "constant"):
        config = small_config(schedule=schedule, warmup_steps=None, warmup_share=0.3)
        loop.train(config, shards, tmp_path / schedule, RANKS)
        rates = [row["learning_rate"] for row in read_metrics(tmp_path / schedule)]
        assert rates[:2] == [5e-3, 1e-2]
        last[schedule] = rates[-1]
    assert last == {"cosine": 1e-3, "linear": 1e-3, "wsd": 1e-3, "constant": 1e-2}
