import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import ConfigError, ContractError
from tests.training.helpers import (
    assert_same_weights,
    batch_of,
    gradients,
    saved_tensors,
    small_config,
    small_model,
    small_shards,
)
from training import loop
from training.config import EvaluationConfig, GuardConfig, NewRowsConfig
from training.data import ShardRows
from training.distributed import single
from training.metrics import EVALUATIONS_FILE, RunLog, read_events, read_metrics
from training.optim import learning_rate
from training.run import open_run
from training.step import accumulate_gradients
from training.tensor_files import checkpoint_tensors

RANKS = single("cpu")


def test_steps_lower_the_loss_and_write_every_metric(tmp_path, capsys):
    shards = small_shards(tmp_path / "shards", num_rows=4)
    config = small_config(max_steps=15, checkpoint_every_steps=100, monitor_every_steps=5)
    assert loop.train(config, shards, tmp_path / "out", RANKS) == 15
    rows = read_metrics(tmp_path / "out")
    assert [row["step"] for row in rows] == [row["data_step"] for row in rows]
    assert [row["step"] for row in rows] == list(range(1, 16))
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    data = ShardRows(shards, "train")
    tokens = sum(len(data[number].input_ids) for number in range(4))
    for place, row in enumerate(rows):
        assert row["action"] == "accept"
        assert row["tokens"] == tokens
        assert row["total_tokens"] == tokens * (place + 1)
        assert row["learning_rate"] == learning_rate(place, config)
        low, high = sorted(row["loss_by_modality"].values())
        assert low <= row["loss"] <= high
        assert set(row["loss_by_source"]) == {"speech-source", "text-source"}
        assert row["loss_by_source"]["text-source"] == row["loss_by_modality"]["text"]
        assert row["gradient_norm"] > 0
        assert row["clipped_to"] == min(1.0, row["gradient_norm"])
        assert 0 < row["largest_logit"] < 50
        assert 0 <= row["data_wait_seconds"] <= row["seconds"]
        assert row["tokens_per_second"] == pytest.approx(tokens / row["seconds"])
        assert row["mfu_causal"] is None, "nobody knows this CPU's peak"
        assert ("update_ratio" in row) == ((place + 1) % 5 == 0)
    assert all(0 < ratio < 1 for ratio in rows[4]["update_ratio"].values())
    assert rows[4]["row_norms"]["old"] > 0
    assert "step 15/15" in capsys.readouterr().err
    board = EventAccumulator(str(tmp_path / "out/tensorboard"))
    board.Reload()
    for name in ("loss", "loss_by_source/text-source", "largest_logit"):
        assert [event.step for event in board.Scalars(f"train/{name}")] == list(range(1, 16))


def test_the_peak_gives_both_conventions_of_mfu(tmp_path):
    shards = small_shards(tmp_path / "shards")
    config = small_config(max_steps=1, peak_tflops=1e-3)
    loop.train(config, shards, tmp_path / "out", RANKS)
    row = read_metrics(tmp_path / "out")[0]
    assert row["mfu_full"] > row["mfu_causal"] > 0


def test_micro_batches_of_any_size_give_the_same_step(tmp_path):
    shards = small_shards(tmp_path, num_documents=2)
    results = []
    for parts in ([[0, 1, 2, 3]], [[0], [1], [2], [3]], [[0, 1, 2], [3]]):
        model = small_model()
        batches = [batch_of(shards, part) for part in parts]
        result = accumulate_gradients(model, batches, RANKS, "fp32", 2)
        results.append((result, gradients(model)))
    first, grads = results[0]
    for result, others in results[1:]:
        assert result.loss == pytest.approx(first.loss, rel=1e-6)
        assert result.supervised == first.supervised
        torch.testing.assert_close(result.sums, first.sums, rtol=1e-5, atol=1e-5)
        for name in grads:
            torch.testing.assert_close(others[name], grads[name], rtol=1e-4, atol=1e-6)


def poison(run, value):
    """Multiply a gradient from now on; the hook's handle takes it back."""
    weight = run.plain_model.model.layers[0].mlp.up_proj.weight
    return weight.register_hook(lambda gradient: gradient * value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_bad_step_is_skipped_and_leaves_weights_and_moments_untouched(tmp_path, value):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    with open_run(small_config(max_steps=9), shards, out, RANKS, None) as run:
        loop.take_step(run)
        before = {n: t.clone() for n, t in checkpoint_tensors(run.model, run.optimizer).items()}
        hook = poison(run, value)
        verdict = loop.take_step(run)
        hook.remove()
        assert verdict.action.name == "SKIP"
        assert_same_weights(checkpoint_tensors(run.model, run.optimizer), before)
        assert (run.progress.steps, run.progress.data_steps) == (1, 2)
        assert loop.take_step(run).action.applies
        assert (run.progress.steps, run.progress.data_steps) == (2, 3)
    skipped = read_metrics(out)[1]
    assert (skipped["action"], skipped["step"], skipped["data_step"]) == ("skip", 1, 2)
    event = read_events(out)[-1]
    assert (event["event"], event["step"], event["rows"]) == ("skip", 1, [4, 5, 6, 7])
    rows = ShardRows(shards, "train")
    assert event["document_ids"] == [rows[number].document_ids for number in range(4, 8)]
    losses = [document["loss"] for document in event["documents"]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 12
    for document in event["documents"]:
        place = rows[document["row"]].document_ids.index(document["id"])
        assert document["tokens"] == rows[document["row"]].document_lengths[place] - 1


def test_a_high_norm_is_clipped_to_the_median_and_logged(tmp_path):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    guard = GuardConfig(window_steps=8, clip_sigmas=3, skip_sigmas=1000)
    config = small_config(max_steps=20, learning_rate=1e-5, guard=guard)
    with open_run(config, shards, out, RANKS, None) as run:
        for _ in range(8):
            loop.take_step(run)
        hook = poison(run, 20.0)
        assert loop.take_step(run).action.name == "CLIP"
        hook.remove()
    row = read_metrics(out)[-1]
    norms = sorted(r["gradient_norm"] for r in read_metrics(out)[:8])
    assert row["gradient_norm"] > norms[-1]
    assert row["clipped_to"] == pytest.approx((norms[3] + norms[4]) / 2)
    assert read_events(out)[-1]["event"] == "clip"


def spoil_batches(monkeypatch, bad):
    """Give the given batches gradients that are no numbers; return the batches as they come."""
    taken = []
    take = loop.take_step

    def take_step(run):
        data_step = run.progress.data_steps
        taken.append(data_step)
        hook = poison(run, float("nan")) if data_step in bad else None
        try:
            return take(run)
        finally:
            if hook:
                hook.remove()

    monkeypatch.setattr(loop, "take_step", take_step)
    return taken


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
    config = small_config(max_steps=7, checkpoint_every_steps=2, guard=LADDER, keep_checkpoints=2)
    with pytest.MonkeyPatch.context() as patch:
        spoil_batches(patch, bad={6, 7, 8, 9})
        loop.train(config, shards, tmp_path / "out", RANKS)
    clean = small_config(max_steps=7, checkpoint_every_steps=2, guard=GuardConfig(enabled=False))
    with open_run(clean, shards, tmp_path / "plain", RANKS, None) as run:
        for _ in range(2):
            loop.take_step(run)
        run.progress = run.progress.after(False, 0)
        for data_step in range(15, 20):  # step 2, then batches 15 on
            object.__setattr__(run.progress, "data_steps", data_step)
            run.guard._state.lowerings = 1
            loop.take_step(run)
        expected = {n: t.clone() for n, t in checkpoint_tensors(run.model, run.optimizer).items()}
    assert_same_weights(saved_tensors(tmp_path / "out", 7, config), expected)


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


def test_a_guard_that_is_off_stops_at_the_first_nan(tmp_path, monkeypatch):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    config = small_config(guard=GuardConfig(enabled=False))
    spoil_batches(monkeypatch, bad={2})
    with pytest.raises(loop.Exploded, match="at step 3 because gradient norm is nan"):
        loop.train(config, shards, out, RANKS)
    assert [row["action"] for row in read_metrics(out)] == ["accept", "accept", "skip"]


def test_new_rows_follow_their_own_rate(tmp_path):
    shards = small_shards(tmp_path / "shards", vocabulary=None, num_rows=8)
    tiny = {"tiny": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}}
    moved = {}
    for factor in (1.0, 3.0):
        new_rows = NewRowsConfig(learning_rate_factor=factor)
        config = small_config(**tiny, new_rows=new_rows, max_steps=1, warmup_steps=1)
        with open_run(config, shards, tmp_path / f"{factor}", RANKS, None) as run:
            weight = run.plain_model.model.embed_tokens.weight
            before = weight.detach().clone()
            loop.take_step(run)
            moved[factor] = (weight.detach() - before).abs()
    old, new = slice(0, 128_256), slice(128_256, 156_938)
    torch.testing.assert_close(moved[3.0][old], moved[1.0][old])
    torch.testing.assert_close(moved[3.0][new], 3 * moved[1.0][new], rtol=1e-2, atol=1e-6)
    assert moved[1.0][new].max() > 0


def test_evaluation_changes_nothing_and_is_written_down(tmp_path):
    shards = small_shards(tmp_path / "shards")
    evaluation = EvaluationConfig(every_steps=2, max_rows=2, prompts=0)
    loop.train(small_config(max_steps=4), shards, tmp_path / "without", RANKS)
    config = small_config(max_steps=4, evaluation=evaluation)
    loop.train(config, shards, tmp_path / "with", RANKS)
    assert_same_weights(*(saved_tensors(tmp_path / n, 4, config) for n in ("with", "without")))
    lines = (tmp_path / "with" / EVALUATIONS_FILE).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(0 < row["loss"] < 10 and row["rows"] == 2 for row in rows)


def test_another_number_of_processes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"1 processes run, but train.workers is 2"):
        loop.train(small_config(workers=2), tmp_path, tmp_path, RANKS)


def test_bf16_trains_with_fp32_weights_and_moments(tmp_path):
    shards = small_shards(tmp_path / "shards")
    config = small_config(precision="bf16", max_steps=2)
    with open_run(config, shards, tmp_path / "out", RANKS, None) as run:
        loop.take_step(run)
        tensors = checkpoint_tensors(run.model, run.optimizer)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_step_without_anything_to_predict_is_refused(tmp_path):
    batch = batch_of(small_shards(tmp_path), [0])
    batch.labels.fill_(-100)
    with pytest.raises(ContractError, match="no token to predict"):
        accumulate_gradients(small_model(), [batch], RANKS, "fp32", 2)


def test_torn_last_lines_and_what_came_after_the_checkpoint_are_dropped(tmp_path):
    lines = [json.dumps({"step": n, "data_step": n}) + "\n" for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"st')
    events = [{"id": f"E{n}", "event": kind, "data_step": n, "step": n}
              for n, kind in ((0, "started"), (2, "skip"), (3, "skip"), (3, "started"))]  # fmt: skip
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert [row["step"] for row in read_metrics(tmp_path, last=2)] == [2, 3]
    RunLog(tmp_path, 2, small_config()).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    kept = [(event["event"], event["data_step"]) for event in read_events(tmp_path)]
    assert kept == [("started", 0), ("skip", 2), ("started", 3)]


def test_numbers_that_are_none_are_spelled(tmp_path):
    with open_run(small_config(), small_shards(tmp_path / "s"), tmp_path / "o", RANKS, None) as run:
        run.observer.event("test", run.progress, value=[math.nan, math.inf, 1.0])
    assert read_events(tmp_path / "o")[-1]["value"] == ["nan", "inf", 1.0]


def test_wandb_that_is_not_installed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="pip install wandb"):
        RunLog(tmp_path, 0, small_config(wandb_project="koe"))
