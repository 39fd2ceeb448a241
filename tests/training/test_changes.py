"""What a resume says of changed settings, and which changes it refuses."""

import json
from typing import Any

import pytest

from koe.errors import ConfigError
from tests.training.helpers import small_config, small_shards
from training.changes import (
    EFFECTS,
    Kind,
    as_stored,
    effect_of,
    find_changes,
    require_allowed,
    stored_settings,
)
from training.checkpoint.manifest import Progress
from training.config import TrainConfig, leaf_settings
from training.loop import take_step, train
from training.metrics import read_events, read_metrics
from training.model.distributed import single
from training.model.schedule import learning_rate
from training.run import open_run

LEAVES = [name for name, _ in leaf_settings(TrainConfig)]
SECTIONS = {name.partition(".")[0] for name in LEAVES if "." in name}
OLD = TrainConfig(max_steps=100, warmup_steps=10, evaluation={"every_steps": 5})


def progress(steps: int, rows_per_step: int = 64) -> Progress:
    return Progress(steps, steps, 1000 * steps, "f" * 64, rows_per_step)


def changed(steps: int = 50, num_rows: int = 10_000, **changes: Any) -> dict[str, tuple[str, bool]]:
    new = TrainConfig.model_validate(OLD.model_dump() | changes)
    found = find_changes(OLD, new, progress(steps), num_rows)
    return {change.name: (change.line, change.refused) for change in found}


@pytest.mark.parametrize("name", LEAVES)
def test_every_setting_is_classified(name):
    assert effect_of(name).does or effect_of(name).kind is Kind.RATE, f"EFFECTS lacks {name}"


def test_the_table_holds_nothing_but_settings():
    assert set(EFFECTS) <= {*LEAVES, *SECTIONS}


def test_settings_survive_a_checkpoint():
    config = small_config(seed=3, guard={"window_steps": 9}, resume_with_changes=["max_steps"])
    stored = json.loads(json.dumps(as_stored(config)))
    assert stored_settings(stored) == config


def test_settings_of_another_version_are_read_as_far_as_they_go():
    stored = as_stored(OLD) | {"gone": 1}
    del stored["z_loss"]
    stored["guard"]["least_deviation"] = stored["guard"].pop("min_deviation")
    assert stored_settings(stored) == OLD
    assert stored_settings(stored | {"max_steps": "many"}) is None
    assert stored_settings(None) is None


def test_nothing_is_said_where_nothing_changed_or_nothing_depends_on_it():
    assert not changed()
    assert not changed(
        launcher="inline", keep_checkpoints=9, evaluation={"every_steps": 1}, allow=["fp16"]
    )


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"loss_on": "response"}, "loss_on", 'train.loss_on: "all" -> "response": other tokens'),
        ({"weight_decay": 0.2}, "weight_decay", "train.weight_decay: 0.1 -> 0.2: updates are"),
        ({"beta2": 0.99}, "beta2", "Adam's moments stay"),
        ({"precision": "fp32"}, "precision", "gradients are computed in it from here on"),
        ({"z_loss": 1e-4}, "z_loss", "cannot be compared"),
        ({"parallel": "ddp"}, "parallel", "rounding"),
        ({"new_rows": {"init": "small_random"}}, "new_rows.init", "no effect"),
        ({"guard": {"skip_sigmas": 6}}, "guard.skip_sigmas", "8.0 -> 6.0: the guard judges by it"),
        ({"workers": 4, "accumulation_steps": 8}, "workers", "summed in another order"),
        ({"seed": 1}, "seed", "only the order of later epochs"),
        ({"learning_rate": 4e-5}, "learning_rate", "the learning rate of step 51 is"),
        ({"max_steps": 90}, "max_steps", "the learning rate of step 51 is"),
    ],
)
def test_a_change_is_said_with_its_effect(changes, name, words):
    line, refused = changed(**changes)[name]
    assert words in line
    assert line.startswith(f"train.{name}: ")
    assert not refused


@pytest.mark.parametrize(
    ("changes", "steps", "name", "words"),
    [
        ({"max_steps": 1000}, 99, "max_steps", "instead of 5e-06"),
        ({"learning_rate": 1e-3}, 50, "learning_rate", "the learning rate of step 51"),
        ({"warmup_steps": 1}, 2, "warmup_steps", "the learning rate of step 3"),
        (
            {"new_rows": {"learning_rate_factor": 2}},
            50,
            "new_rows.learning_rate_factor",
            "new rows",
        ),
        ({"workers": 4}, 50, "workers", "a step has 32 rows instead of 64"),
        ({"micro_batch_rows": 4}, 50, "micro_batch_rows", "3,200 rows are left out"),
        ({"accumulation_steps": 2}, 50, "accumulation_steps", "1,600 rows are read twice"),
        ({"seed": 1}, 200, "seed", "some twice and some never"),
    ],
)
def test_a_leap_of_the_rate_and_another_order_are_refused_unless_named(changes, steps, name, words):
    line, refused = changed(steps, **changes)[name]
    assert words in line
    assert refused
    new = TrainConfig.model_validate(OLD.model_dump() | changes)
    found = find_changes(OLD, new, progress(steps), 10_000)
    with pytest.raises(ConfigError) as raised:
        require_allowed(found, new, "run/step-1")
    assert words in raised.value.why
    assert f"train.resume_with_changes=[{name}]" in raised.value.remedy
    require_allowed(found, new.model_copy(update={"resume_with_changes": [name]}), "run/step-1")


def test_before_the_first_batch_nothing_can_break():
    found = changed(0, seed=1, learning_rate=1e-3, workers=4, max_steps=1000)
    assert set(found) == {"seed", "learning_rate", "workers", "max_steps"}
    assert not any(refused for _, refused in found.values())


def test_all_that_is_refused_must_be_named():
    new = OLD.model_copy(update={"seed": 1, "max_steps": 1000, "resume_with_changes": ["seed"]})
    found = find_changes(OLD, new, progress(99), 100)
    with pytest.raises(ConfigError, match=r"\(max_steps\).*changes=\[seed, max_steps\]"):
        require_allowed(found, new, "run")


def test_a_name_that_is_no_setting_is_refused():
    with pytest.raises(
        ValueError, match=r"max_step is no setting of train; did you mean max_steps"
    ):
        TrainConfig(resume_with_changes=["max_step"])


def test_of_a_checkpoint_without_settings_the_rows_per_step_are_known():
    assert not find_changes(None, OLD, progress(5), 100)
    (change,) = find_changes(None, OLD, progress(5, 32), 100)
    assert change.refused
    assert "a step has 64 rows instead of 32" in change.line


@pytest.fixture
def trained(tmp_path):
    """A run of 4 steps, and its folders."""
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    train(small_config(max_steps=4), shards, out, single("cpu"))
    return shards, out


def test_a_longer_run_whose_rate_leaps_is_refused_and_goes_on_when_named(trained, capsys):
    shards, out = trained
    longer = small_config(max_steps=8)
    assert learning_rate(4, longer) > 1.5 * learning_rate(4, small_config(max_steps=4))
    with pytest.raises(ConfigError, match=r"max_steps: 4 -> 8.*resume_with_changes=\[max_steps\]"):
        train(longer, shards, out, single("cpu"))
    assert len(read_metrics(out)) == 4, "nothing was trained"
    named = small_config(max_steps=8, resume_with_changes=["max_steps"], beta2=0.9)
    assert train(named, shards, out, single("cpu")) == 8
    said = capsys.readouterr().err
    assert "train.max_steps: 4 -> 8: the learning rate of step 5 is" in said
    assert "train.beta2: 0.95 -> 0.9: updates are computed with it" in said
    assert "train.max_steps: 4 -> 8" in read_events(out)[-1]["reason"]
    train(named, shards, out, single("cpu"))
    assert "train.beta2" not in capsys.readouterr().err, "the newest checkpoint has it already"


def test_other_rows_per_step_are_refused_and_counted_from_then_on_when_named(trained):
    shards, out = trained
    halved = {"accumulation_steps": 1, "max_steps": 6}
    with pytest.raises(ConfigError, match="8 rows are read twice"):
        train(small_config(**halved), shards, out, single("cpu"))
    named = ["accumulation_steps", "max_steps"]
    train(small_config(**halved, resume_with_changes=named), shards, out, single("cpu"))
    assert train(small_config(**halved), shards, out, single("cpu")) == 6


def test_an_old_checkpoint_is_resumed_and_nothing_is_known_of_its_settings(
    tmp_path, monkeypatch, capsys
):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    monkeypatch.setattr("training.changes.as_stored", lambda config: None)
    train(small_config(max_steps=2), shards, out, single("cpu"))
    monkeypatch.undo()
    assert train(small_config(max_steps=4), shards, out, single("cpu")) == 4
    assert "are not known, and not compared" in capsys.readouterr().err


@pytest.mark.parametrize(("share", "expected"), [(1.0, 0.5), (0.5, 0.5), (0.25, 0.25)])
def test_after_the_guard_the_lower_of_two_rates_is_trained_with(tmp_path, share, expected):
    """The guard has halved the rate, and the user lowers the setting, as the guard's stop advises."""
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    before = small_config(schedule="constant", warmup_steps=1, max_steps=4)
    with open_run(before, shards, out, single("cpu"), None) as run:
        for _ in range(2):
            take_step(run)
        run.guard._state.lowerings = 1
        run.save()
        run.writer.finish()
    rate = before.learning_rate
    after = before.model_copy(update={"learning_rate": share * rate})
    train(after, shards, out, single("cpu"))
    rates = [row["learning_rate"] for row in read_metrics(out)]
    assert rates == pytest.approx([expected * rate] * 2)
