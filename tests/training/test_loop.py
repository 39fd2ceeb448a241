import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import ConfigError, ContractError, StageError
from tests.training.helpers import (
    assert_same_weights,
    batch_of,
    gradients,
    small_config,
    small_model,
    small_shards,
)
from training import loop
from training.data import MODALITIES, ShardRows
from training.distributed import single
from training.metrics import MetricsLog, read_metrics
from training.optim import learning_rate

RANKS = single("cpu")


def weights(out_dir, steps):
    return torch.load(out_dir / f"checkpoints/step-{steps:08d}/model.pt", weights_only=True)


def test_steps_lower_the_loss_and_write_every_metric(tmp_path, capsys):
    shards = small_shards(tmp_path / "shards", num_rows=4)
    config = small_config(max_steps=15, checkpoint_every_steps=100)
    assert loop.train(config, shards, tmp_path / "out", RANKS) == 15
    rows = read_metrics(tmp_path / "out")
    assert [row["step"] for row in rows] == list(range(1, 16))
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    data = ShardRows(shards, "train")
    tokens = sum(len(data[number].input_ids) for number in range(4))
    for place, row in enumerate(rows):
        assert row["tokens"] == tokens
        assert row["total_tokens"] == tokens * (place + 1)
        assert row["learning_rate"] == learning_rate(place, config)
        low, high = sorted([row["loss_text"], row["loss_speech"]])
        assert low <= row["loss"] <= high
        assert row["gradient_norm"] > 0
        assert 0 <= row["data_wait_seconds"] <= row["seconds"]
        assert row["tokens_per_second"] == pytest.approx(tokens / row["seconds"])
    assert "step 15/15" in capsys.readouterr().err
    board = EventAccumulator(str(tmp_path / "out/tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 16))


def test_micro_batches_of_any_size_give_the_same_step(tmp_path):
    shards = small_shards(tmp_path, num_documents=2)
    results = []
    for parts in ([[0, 1, 2, 3]], [[0], [1], [2], [3]], [[0, 1, 2], [3]]):
        model = small_model()
        losses = loop.accumulate_gradients(
            model, [batch_of(shards, part) for part in parts], RANKS, "fp32"
        )
        results.append((losses, gradients(model)))
    first_losses, first = results[0]
    for losses, grads in results[1:]:
        assert losses.loss == pytest.approx(first_losses.loss, rel=1e-6)
        assert losses.supervised == first_losses.supervised
        assert losses.by_modality == pytest.approx(first_losses.by_modality)
        for name in first:
            torch.testing.assert_close(grads[name], first[name], rtol=1e-4, atol=1e-6)


def test_losses_by_modality_add_up(tmp_path):
    shards = small_shards(tmp_path)
    batch = batch_of(shards, [0, 1, 2])
    losses = loop.accumulate_gradients(small_model(), [batch], RANKS, "fp32")
    counts = {
        name: int(((batch.labels >= 0) & (batch.modality == i)).sum())
        for i, name in enumerate(MODALITIES)
    }
    assert sum(counts.values()) == losses.supervised
    total = sum(losses.by_modality[name] * count for name, count in counts.items())
    assert total / losses.supervised == pytest.approx(losses.loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_out_of_range_leaves_weights_and_moments_untouched(tmp_path, value, monkeypatch):
    shards, out = small_shards(tmp_path / "shards"), tmp_path / "out"
    config = small_config(max_steps=4)
    loop.train(small_config(max_steps=2), shards, out, RANKS)
    before = weights(out, 2)

    seen = {}
    build = loop.build_optimizer

    def poisoned(model, config):
        optimizer = build(model, config)
        seen.update(model=model, optimizer=optimizer)
        # The weight is restored from the checkpoint afterwards, so the poison goes into the
        # gradient, as a bad row's would.
        model.llama.model.layers[0].mlp.up_proj.weight.register_hook(lambda g: g * value)
        return optimizer

    monkeypatch.setattr(loop, "build_optimizer", poisoned)
    with pytest.raises(StageError, match=r"step 3 gave a loss .*events.jsonl") as raised:
        loop.train(config, shards, out, RANKS)
    assert raised.value.stage == "train"
    assert_same_weights(seen["model"].llama.state_dict(), before)
    moments = torch.load(out / "checkpoints/step-00000002/optimizer.pt", weights_only=True)
    for ours, theirs in zip(
        seen["optimizer"].state_dict()["state"].values(), moments["state"].values(), strict=True
    ):
        assert_same_weights(ours, theirs)
    event = json.loads((out / "events.jsonl").read_text().splitlines()[-1])
    assert (event["event"], event["step"], event["rows"]) == ("not_finite", 3, [8, 9, 10, 11])
    assert event["gradient_norm"] in ("nan", "inf")
    assert event["document_ids"][0] == ShardRows(shards, "train")[8].document_ids
    assert [row["step"] for row in read_metrics(out)] == [1, 2]


def test_fp16_is_refused_with_the_reason(tmp_path):
    with pytest.raises(ConfigError, match=r"fp16 is refused because .*65,504.*bf16"):
        loop.train(small_config(precision="fp16"), tmp_path, tmp_path, RANKS)


def test_another_number_of_processes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"1 processes run, but train.workers is 2"):
        loop.train(small_config(workers=2), tmp_path, tmp_path, RANKS)


def test_bf16_trains_with_fp32_weights_and_moments(tmp_path):
    shards = small_shards(tmp_path / "shards")
    loop.train(small_config(precision="bf16", max_steps=2), shards, tmp_path / "out", RANKS)
    assert {w.dtype for w in weights(tmp_path / "out", 2).values()} == {torch.float32}
    state = torch.load(tmp_path / "out/checkpoints/step-00000002/optimizer.pt", weights_only=True)[
        "state"
    ]
    assert {value.dtype for moments in state.values() for value in moments.values()} == {
        torch.float32
    }


def test_a_step_without_anything_to_predict_is_refused(tmp_path):
    batch = batch_of(small_shards(tmp_path), [0])
    batch.labels.fill_(-100)
    with pytest.raises(ContractError, match="no token to predict"):
        loop.accumulate_gradients(small_model(), [batch], RANKS, "fp32")


def test_a_torn_last_line_of_the_metrics_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert [row["step"] for row in read_metrics(tmp_path, last=2)] == [2, 3]
    with MetricsLog(tmp_path, 2, 10, 1):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
