import json
import math
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from koe.errors import ConfigError, ContractError
from tests.training.helpers import (
    assert_same_weights,
    batch_of,
    gradients,
    poison,
    saved_tensors,
    small_config,
    small_model,
    small_shards,
    spoil_batches,
)
from training import loop
from training.checkpoint.tensor_files import checkpoint_tensors
from training.config import EvaluationConfig, GuardConfig, NewRowsConfig
from training.data.shard_rows import ShardRows
from training.metrics import EVALUATIONS_FILE, RunLog, read_events, read_metrics
from training.model.distributed import single
from training.model.schedule import learning_rate
from training.observe import Observer
from training.run import Run, open_run
from training.step import accumulate_gradients

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


def test_a_step_lasts_until_the_next_begins_but_no_checkpoint(tmp_path, monkeypatch):
    """What a process does after it has started a step's last kernels hides a GPU's time."""
    now = [0.0]

    def perf_counter():
        now[0] += 0.25  # every reading is later than the one before
        return now[0]

    def lasting(seconds, function):
        def run(*arguments):
            now[0] += seconds
            return function(*arguments)

        return run

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=perf_counter))
    monkeypatch.setattr(RunLog, "step", lasting(2.0, RunLog.step))
    monkeypatch.setattr(Run, "save", lasting(5.0, Run.save))
    shards = small_shards(tmp_path / "shards")
    config = small_config(max_steps=4, checkpoint_every_steps=2)
    loop.train(config, shards, tmp_path / "out", RANKS)
    seconds = [row["seconds"] for row in read_metrics(tmp_path / "out")]
    # Steps 2 and 4 last through the log of the step before. Step 3 follows a checkpoint, which with
    # that log is no step's.
    assert min(seconds[1], seconds[3]) >= 2.0
    assert seconds[2] < 2.0


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_bad_step_is_skipped_and_leaves_weights_and_moments_untouched(tmp_path, value):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    with open_run(small_config(max_steps=9, ema_decay=0.9), shards, out, RANKS, None) as run:
        observer = Observer(run)

        def tensors():
            return checkpoint_tensors(run.model, run.optimizer, run.average)

        def take_step():
            step = loop.take_step(run)
            observer.record_step(step)
            return step.verdict.action

        take_step()
        before = {n: t.clone() for n, t in tensors().items()}
        hook = poison(run, value)
        assert take_step().name == "SKIP"
        hook.remove()
        assert_same_weights(tensors(), before)
        assert (run.progress.steps, run.progress.data_steps) == (1, 2)
        assert take_step().applies
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
        observer = Observer(run)
        for _ in range(8):
            observer.record_step(loop.take_step(run))
        hook = poison(run, 20.0)
        clipped = loop.take_step(run)
        hook.remove()
        assert clipped.verdict.action.name == "CLIP"
        observer.record_step(clipped)
    row = read_metrics(out)[-1]
    norms = sorted(r["gradient_norm"] for r in read_metrics(out)[:8])
    assert row["gradient_norm"] > norms[-1]
    assert row["clipped_to"] == pytest.approx((norms[3] + norms[4]) / 2)
    assert read_events(out)[-1]["event"] == "clip"


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


def test_incomplete_last_lines_and_what_came_after_the_checkpoint_are_dropped(tmp_path):
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
        run.event("test", value=[math.nan, math.inf, 1.0])
    assert read_events(tmp_path / "o")[-1]["value"] == ["nan", "inf", 1.0]


def test_wandb_that_is_not_installed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="pip install wandb"):
        RunLog(tmp_path, 0, small_config(wandb_project="koe"))
