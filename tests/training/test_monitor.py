import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import LlamaConfig, LlamaForCausalLM

from koe.vocabulary import CODEBOOK_SIZE, END_OF_AI, FIRST_AUDIO, SLOTS, START_OF_SPEECH
from tests.training.ranks import run_ranks
from training import monitor
from training.config import TrainConfig
from training.data.batches import IGNORED
from training.model.distributed import Ranks
from training.model.optim import NewRowsRate, build_optimizer, set_learning_rate
from training.monitor import (
    document_losses,
    flops_per_token,
    loss_sums,
    peak_flops,
    row_norms,
    split_losses,
    update_ratios,
)

VOCABULARY, FIRST_NEW = 51, 40
RATE, FACTOR, STEPS = 5e-2, 3.0, 3
ALONE = Ranks(0, 1, torch.device("cpu"))


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(shape)


def train(model: LlamaForCausalLM, steps: int = STEPS) -> torch.optim.AdamW:
    """Take steps with random gradients, equal for a whole and for a sharded model."""
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.5))
    set_learning_rate(optimizer, RATE)
    new_rows = NewRowsRate(optimizer, model.model.embed_tokens.weight, FIRST_NEW)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            grad = torch.randn(parameter.shape, generator=generator)
            if isinstance(parameter, DTensor):
                grad = distribute_tensor(grad, parameter.device_mesh, parameter.placements)
            parameter.grad = grad
        with new_rows.scaled(FACTOR):
            optimizer.step()
    return optimizer


def ratios_of(model: LlamaForCausalLM, optimizer: torch.optim.AdamW, ranks: Ranks) -> dict:
    return update_ratios(
        model, optimizer, RATE, ranks, new_rows_factor=FACTOR, first_new_row=FIRST_NEW
    )


def measured_ratios() -> dict[str, float]:
    """The oracle: what the weights changed by in the last step, group by group."""
    model, before = small_llama(), small_llama()
    train(before, STEPS - 1)
    train(model)
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, parameter in model.named_parameters():
        if "embed" in name:
            parts = {"embedding_old": slice(FIRST_NEW), "embedding_new": slice(FIRST_NEW, None)}
        else:
            kinds = {"self_attn": "attention", "mlp": "mlp"}
            parts = {kinds.get(name.split(".")[-3], "norm"): slice(None)}
        for group, part in parts.items():
            after = parameter.detach()[part].double()
            change = after - before.get_parameter(name).detach()[part].double()
            squares[group][0] += change.square().sum().item()
            squares[group][1] += after.square().sum().item()
    return {group: math.sqrt(change / weight) for group, (change, weight) in squares.items()}


def test_update_ratios_are_those_of_the_change_that_the_step_made(monkeypatch):
    expected = measured_ratios()
    assert len(expected) == 5
    model = small_llama()
    optimizer = train(model)
    assert ratios_of(model, optimizer, ALONE) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(monitor, "_PIECE_NUMBERS", 100)  # six rows of 16, and one of 24 at a time
    assert ratios_of(model, optimizer, ALONE) == pytest.approx(expected, rel=1e-5)


def test_measuring_changes_neither_weights_nor_moments():
    model = small_llama()
    optimizer = train(model)
    tensors = [*model.parameters()]
    tensors += [t for state in optimizer.state.values() for t in state.values()]
    before = [tensor.detach().clone() for tensor in tensors]
    ratios_of(model, optimizer, ALONE)
    row_norms(model, ALONE, first_new_row=FIRST_NEW)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


def test_a_spike_of_the_update_shows_in_its_group_only():
    model = small_llama()
    optimizer = train(model)
    before = ratios_of(model, optimizer, ALONE)
    weight = model.get_parameter("model.layers.1.mlp.up_proj.weight")
    optimizer.state[weight]["exp_avg"] *= 100
    after = ratios_of(model, optimizer, ALONE)
    assert after["mlp"] > 20 * before["mlp"]
    assert {**after, "mlp": 0} == {**before, "mlp": 0}


def test_before_the_first_step_and_without_new_rows_nothing_moves():
    model = small_llama()
    optimizer = build_optimizer(model, TrainConfig())
    found = update_ratios(model, optimizer, RATE, ALONE)
    assert found == dict.fromkeys(("embedding_old", "attention", "mlp", "norm"), 0.0)


def test_row_norms_are_means_over_the_old_and_the_new_rows():
    model = small_llama()
    weight = model.model.embed_tokens.weight.detach()
    with torch.no_grad():
        weight[FIRST_NEW:] *= 4
    found = row_norms(model, ALONE, first_new_row=FIRST_NEW)
    norms = [math.sqrt(sum(x * x for x in row)) for row in weight.tolist()]
    assert found["old"] == pytest.approx(sum(norms[:FIRST_NEW]) / FIRST_NEW)
    assert found["new"] == pytest.approx(sum(norms[FIRST_NEW:]) / (VOCABULARY - FIRST_NEW))
    assert row_norms(model, ALONE)["new"] is None


def measure_in_world(ranks: Ranks, folder: Path) -> None:
    found = {}
    for parallel in ("ddp", "fsdp"):
        model = small_llama()  # DDP's parameters are whole on every rank
        if parallel == "fsdp":  # 51 rows: 26 and 25, all new ones on the second rank
            for layer in model.model.layers:
                fully_shard(layer)
            fully_shard(model)
        optimizer = train(model)
        found[parallel] = {
            "ratios": ratios_of(model, optimizer, ranks),
            "norms": row_norms(model, ranks, first_new_row=FIRST_NEW),
        }
    torch.save(found, folder / f"{ranks.rank}.pt")


@pytest.mark.slow
def test_ranks_measure_the_same_whether_they_hold_all_or_a_shard(tmp_path):
    run_ranks(measure_in_world, 2, tmp_path)
    model = small_llama()
    ratios = ratios_of(model, train(model), ALONE)
    norms = row_norms(model, ALONE, first_new_row=FIRST_NEW)
    for rank in range(2):
        for found in torch.load(tmp_path / f"{rank}.pt", weights_only=True).values():
            assert found["ratios"] == pytest.approx(ratios, rel=1e-9)
            assert found["norms"] == pytest.approx(norms, rel=1e-9)


def orpheus(tied: bool = True) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=156_938, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28,
        num_attention_heads=24, num_key_value_heads=8, head_dim=128, tie_word_embeddings=tied,
    )  # fmt: skip


def num_parameters(config: LlamaConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in LlamaForCausalLM(config).parameters())


def test_flops_of_orpheus_3b():
    config = orpheus()
    number = num_parameters(config)
    assert number == pytest.approx(3.301e9, rel=2e-4)
    full, causal = flops_per_token(config, number, 2048)
    assert causal == pytest.approx(20.9e9, rel=3e-3)
    assert full - causal == 6 * 28 * 24 * 128 * 2048


def test_a_table_that_is_only_looked_up_multiplies_nothing():
    tied, untied = orpheus(), orpheus(tied=False)
    more = num_parameters(untied)
    assert more == num_parameters(tied) + 156_938 * 3072
    assert flops_per_token(untied, more, 2048) == flops_per_token(tied, num_parameters(tied), 2048)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA RTX A1000", None),
        ("cpu", None),
    ],
)
def test_the_peak_is_known_by_name_or_not_at_all(name, tflops):
    assert peak_flops(name, None) == (tflops and tflops * 1e12)
    assert peak_flops(name, 700.5) == 700.5e12


def batch_of_losses(seed: int):
    """Three rows of text, control ids and audio of all slots, padded, some labels ignored."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 90)
    slot = torch.randint(0, SLOTS, shape, generator=generator)
    code = torch.randint(0, CODEBOOK_SIZE, shape, generator=generator)
    text = torch.randint(0, 128_000, shape, generator=generator)
    labels = torch.where(
        torch.rand(shape, generator=generator) < 0.6,
        FIRST_AUDIO + CODEBOOK_SIZE * slot + code,
        text,
    )
    edges = [FIRST_AUDIO - 1, FIRST_AUDIO, FIRST_AUDIO + CODEBOOK_SIZE - 1,
             FIRST_AUDIO + CODEBOOK_SIZE, FIRST_AUDIO + SLOTS * CODEBOOK_SIZE - 1,
             FIRST_AUDIO + SLOTS * CODEBOOK_SIZE, START_OF_SPEECH, END_OF_AI]  # fmt: skip
    labels[0, 1 : 1 + len(edges)] = torch.tensor(edges)
    document_index = torch.sort(torch.randint(0, 6, shape, generator=generator)).values
    _, document_index = torch.unique_consecutive(document_index, return_inverse=True)
    document_index = (document_index.view(shape) - document_index.view(shape)[:, :1]).int()
    source = (document_index % 4).to(torch.int16)  # source 4 has no token
    labels[torch.rand(shape, generator=generator) < 0.2] = IGNORED
    labels[1, document_index[1] == 2] = IGNORED  # a document that predicts nothing
    labels[2, 70:], source[2, 70:], document_index[2, 70:] = IGNORED, -1, -1
    losses = torch.rand(shape, generator=generator) * 12
    return torch.where(labels == IGNORED, 0, losses), labels, source, document_index


@pytest.mark.parametrize("seed", range(3))
def test_losses_apart_equal_a_plain_loop(seed):
    losses, labels, source, _ = batch_of_losses(seed)
    expected = torch.zeros(5 + SLOTS + 1, 2, dtype=torch.float64)
    for loss, label, origin in zip(
        losses.flatten().tolist(), labels.flatten().tolist(), source.flatten().tolist(), strict=True
    ):
        if label == IGNORED:
            continue
        slot = SLOTS
        for k in range(SLOTS):
            if FIRST_AUDIO + k * CODEBOOK_SIZE <= label < FIRST_AUDIO + (k + 1) * CODEBOOK_SIZE:
                slot = k
        for place in (origin, 5 + slot):
            expected[place] += torch.tensor([loss, 1.0], dtype=torch.float64)
    found = loss_sums(losses, labels, source, 5)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[:5].sum(0), found[5:].sum(0))

    by_source, by_slot = split_losses(found, ["a", "b", "c", "d", "empty"])
    means = [total / count if count else None for total, count in expected.tolist()]
    assert by_source == pytest.approx(dict(zip("abcd", means, strict=False)) | {"empty": None})
    assert by_slot == pytest.approx(means[5:-1])
    assert len(by_slot) == SLOTS


def test_a_loss_that_is_not_finite_spoils_its_own_parts_only():
    losses, labels, source, _ = batch_of_losses(0)
    place = tuple((labels >= FIRST_AUDIO + CODEBOOK_SIZE).nonzero()[0].tolist())
    losses[place] = float("nan")
    spoiled = loss_sums(losses, labels, source, 4)[:, 0].isnan()
    slot = (int(labels[place]) - FIRST_AUDIO) // CODEBOOK_SIZE
    assert spoiled.nonzero().flatten().tolist() == [int(source[place]), 4 + slot]


@pytest.mark.parametrize("seed", range(3))
def test_losses_of_documents_equal_a_plain_loop(seed):
    losses, labels, _, document_index = batch_of_losses(seed)
    found = document_losses(losses, labels, document_index)
    assert len(found) == 3
    assert found[1][2] == (None, 0)
    for row, documents in enumerate(found):
        assert len(documents) == int(document_index[row].max()) + 1
        for number, (mean, count) in enumerate(documents):
            terms = [
                losses[row, t].item()
                for t in range(labels.shape[1])
                if document_index[row, t] == number and labels[row, t] != IGNORED
            ]
            assert count == len(terms)
            assert mean == (pytest.approx(sum(terms) / count) if count else None)


def test_a_row_of_padding_has_no_documents():
    nothing = torch.full((1, 4), -1, dtype=torch.int32)
    assert document_losses(torch.zeros(1, 4), torch.full((1, 4), IGNORED), nothing) == [[]]
