import math
from dataclasses import asdict, dataclass, field

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from koe.vocabulary import CODEBOOK_SIZE, FIRST_AUDIO, SLOTS
from tests.training.ranks import run_ranks
from tests.training.shards import write_shards
from training.config import EvaluationConfig, TinyModelConfig, TrainConfig
from training.data.batches import collate
from training.data.shard_rows import ShardRows
from training.evaluation import chosen_rows, evaluate
from training.generation import Prompt, generate
from training.model.distributed import Ranks, parallelise, single
from training.model.llama import build_model
from training.step import forward

NUM_ROWS = 7


def config_for(**changes) -> TrainConfig:
    settings = {
        "device": "cpu",
        "base_model": None,
        "precision": "fp32",
        "micro_batch_rows": 2,
        "tiny": TinyModelConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2),
        **changes,
    }
    return TrainConfig(**settings)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return write_shards(folder, num_rows=NUM_ROWS, row_tokens=90, num_documents=2)


@pytest.fixture(scope="module")
def rows(shards):
    return ShardRows(shards, "train")  # more of them than of the validation split


@pytest.fixture(scope="module")
def model():
    return build_model(config_for()).train()


def expected_means(model, rows, numbers):
    """Compute each document alone with transformers' own logits, one token at a time."""
    losses: dict = {}
    for number in numbers:
        row, start = rows[number], 0
        for place, length in enumerate(row.document_lengths.tolist()):
            ids = torch.from_numpy(row.input_ids[start : start + length].astype("int64"))
            start += length
            with torch.no_grad():
                logits = model(input_ids=ids.unsqueeze(0)).logits[0]
            each = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
            for label, loss in zip(ids[1:].tolist(), each.tolist(), strict=True):
                slot = (label - FIRST_AUDIO) // CODEBOOK_SIZE if label >= FIRST_AUDIO else None
                keys = ("all", row.document_sources[place], row.document_modalities[place], slot)
                for key in keys:
                    losses.setdefault(key, []).append(loss)
    return {key: sum(values) / len(values) for key, values in losses.items()}, len(losses["all"])


def test_losses_are_those_of_each_document_alone(model, rows):
    found = evaluate(model, rows, single("cpu"), config_for())
    means, tokens = expected_means(model, rows, range(NUM_ROWS))
    assert found.tokens == tokens
    assert found.rows == NUM_ROWS
    assert found.loss == pytest.approx(means["all"], rel=1e-5)
    for name in ("text-source", "speech-source"):
        assert found.loss_by_source[name] == pytest.approx(means[name], rel=1e-5)
    for name in ("text", "speech"):
        assert found.loss_by_modality[name] == pytest.approx(means[name], rel=1e-5)
    expected = [means[slot] for slot in range(SLOTS)]
    assert found.loss_by_slot == pytest.approx(expected, rel=1e-5)


def test_rows_are_spread_over_the_split(model, rows):
    assert chosen_rows(10, 20) == list(range(10))
    assert chosen_rows(10, 3) == [0, 3, 6]
    assert chosen_rows(1, 5) == [0]
    config = config_for(evaluation=EvaluationConfig(max_rows=3))
    found = evaluate(model, rows, single("cpu"), config)
    means, tokens = expected_means(model, rows, [0, 2, 4])
    assert (found.rows, found.tokens) == (3, tokens)
    assert found.loss == pytest.approx(means["all"], rel=1e-5)


def test_only_responses_count_where_only_they_are_trained(model, rows):
    everything = evaluate(model, rows, single("cpu"), config_for())
    found = evaluate(model, rows, single("cpu"), config_for(loss_on="response"))
    assert 0 < found.tokens < everything.tokens


def test_training_does_not_notice(model, rows):
    model.zero_grad(set_to_none=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, rows, single("cpu"), config_for())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()
    evaluate(model, rows, single("cpu"), config_for())
    assert not model.training
    model.train()


def test_bf16_passes_leave_no_casts_behind(model, rows):
    """Autocast keeps BF16 copies of weights, and those made without gradients must not be met."""
    config = config_for(precision="bf16")
    batch = collate([rows[0]], model.num_embeddings, rows.sources)

    def gradients():
        model.zero_grad(set_to_none=True)
        forward(model, batch, "bf16").total.backward()
        return [p.grad.clone() for p in model.parameters()]

    before = gradients()
    found = evaluate(model, rows, single("cpu"), config)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))
    exact = evaluate(model, rows, single("cpu"), config_for())
    assert found.loss != exact.loss
    assert found.loss == pytest.approx(exact.loss, rel=1e-3)


def test_a_failed_pass_gives_everything_back(model, rows):
    def fail(*_):
        torch.rand(3)
        raise RuntimeError("broken kernel")

    state = torch.get_rng_state()
    hook = model.model.norm.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken kernel"):
        evaluate(model, rows, single("cpu"), config_for())
    hook.remove()
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_is_not_finite_is_reported(rows):
    model = build_model(config_for())
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    found = evaluate(model, rows, single("cpu"), config_for())
    assert math.isnan(found.loss)
    assert math.isnan(found.loss_by_source["text-source"] or 0)


@dataclass(frozen=True)
class OneOfMany(Ranks):
    """A rank that keeps to itself what it would add up with the others."""

    kept: list = field(default_factory=list)

    def sums(self, values):
        self.kept.append(torch.tensor(values, dtype=torch.float64))
        return list(values)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_the_rows_and_pass_equally_often(model, rows, world):
    passes: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(0))
    try:
        alone = OneOfMany(0, 1, torch.device("cpu"))
        evaluate(model, rows, alone, config_for())
        assert len(passes) == 4
        total, counts = torch.zeros_like(alone.kept[0]), set()
        for rank in range(world):
            passes.clear()
            ranks = OneOfMany(rank, world, torch.device("cpu"))
            evaluate(model, rows, ranks, config_for())
            assert len(ranks.kept) == 1
            total += ranks.kept[0]
            counts.add(len(passes))
    finally:
        hook.remove()
    assert counts == {math.ceil(4 / world)}
    torch.testing.assert_close(total, alone.kept[0], rtol=1e-12, atol=0)


PROMPTS = [Prompt("long", (128259, 128000, 5, 6, 7, 128009)), Prompt("short", (128259, 9))]
SPOKEN = EvaluationConfig(max_frames=1, temperature=1.0)


def both(model, rows, ranks):
    config = config_for(workers=ranks.world)
    speeches = generate(model, PROMPTS, SPOKEN, 3, ranks)
    return asdict(evaluate(model, rows, ranks, config)), [speech.ids for speech in speeches]


def in_world(ranks, shards, out):
    rows = ShardRows(shards, "train")
    for parallel in ("fsdp", "ddp"):
        plain = build_model(config_for())
        model = parallelise(
            plain, ranks, parallel, "fp32", compile=False, activation_checkpointing=False
        ).train()
        kinds = [type(p).__name__ for p in plain.parameters()]
        reshards = resharding(plain)
        for _ in range(2):  # before the first step, and between two
            found = both(model, rows, ranks)
            assert [type(p).__name__ for p in plain.parameters()] == kinds
            assert plain.training
            batch = torch.arange(20).view(1, -1)
            index = torch.zeros_like(batch, dtype=torch.int32)
            losses = model(input_ids=batch, labels=batch, position_ids=batch, document_index=index)
            losses.total.backward()
            plain.zero_grad()
        assert resharding(plain) == reshards == [True] * (2 if parallel == "fsdp" else 0)
        torch.save(found, out / f"{parallel}-{ranks.rank}.pt")


def resharding(plain):
    """Tell which layers free their weights after a forward pass, as they must in training."""
    layers = [m for m in plain.model.layers if isinstance(m, FSDPModule)]
    groups = [layer._get_fsdp_state()._fsdp_param_group for layer in layers]
    return [group._reshard_after_forward for group in groups if group]


@pytest.mark.slow
def test_two_ranks_measure_and_speak_as_one(model, rows, shards, tmp_path):
    run_ranks(in_world, 2, shards, tmp_path)
    expected, ids = both(model, rows, single("cpu"))
    for path in sorted(tmp_path.glob("*.pt")):
        found, spoken = torch.load(path, weights_only=True)
        assert spoken == ids
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-6), (path.name, name)
    assert len(list(tmp_path.glob("*.pt"))) == 4
