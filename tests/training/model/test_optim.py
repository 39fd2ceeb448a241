from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from koe.errors import ContractError
from tests.training.ranks import run_ranks
from training.config import TrainConfig
from training.model.distributed import Ranks
from training.model.optim import NewRowsRate, build_optimizer, local_new_rows, set_learning_rate

ROWS, WIDTH, FIRST_NEW = 41, 8, 25
RATES = [1e-2, 3e-2, 1e-3, 2e-2, 1e-2]
FACTORS = [0.1, 3.0, 1.0, 10.0, 0.5]


def config_of(**changes) -> TrainConfig:
    return TrainConfig(
        **{"learning_rate": 1e-2, "warmup_steps": 2, "max_steps": 6, **changes}  # pyright: ignore
    )


def start() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.05


def gradient(step: int) -> torch.Tensor:
    """One of unequal sizes, with a row that has none."""
    generator = torch.Generator().manual_seed(step + 1)
    grad = torch.randn(ROWS, WIDTH, generator=generator)
    grad *= torch.logspace(-6, 1, ROWS)[torch.randperm(ROWS, generator=generator)][:, None]
    grad[30] = 0
    return grad


class Embedding(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding.from_pretrained(weight.clone(), freeze=False)


def train_one_parameter(model: Embedding, rates, factors) -> torch.Tensor:
    """The subject: one embedding, its new rows at a rate of their own."""
    optimizer = build_optimizer(model, config_of())
    weight = model.embed_tokens.weight
    new_rows = NewRowsRate(optimizer, weight, FIRST_NEW)
    for step, (rate, factor) in enumerate(zip(rates, factors, strict=True)):
        grad = gradient(step)
        if isinstance(weight, DTensor):
            grad = distribute_tensor(grad, weight.device_mesh, weight.placements)
        weight.grad = grad
        set_learning_rate(optimizer, rate)
        with new_rows.scaled(factor):
            optimizer.step()
    return weight.full_tensor() if isinstance(weight, DTensor) else weight.detach()


def train_two_groups(rates, factors) -> torch.Tensor:
    """The oracle: old and new rows are two parameters in groups of their own."""
    old, new = (nn.Parameter(part.clone()) for part in start().split([FIRST_NEW, ROWS - FIRST_NEW]))
    settings = config_of()
    optimizer = torch.optim.AdamW(
        [{"params": [old]}, {"params": [new]}],
        lr=1.0,
        betas=(settings.beta1, settings.beta2),
        weight_decay=0.0,
        fused=True,
    )
    for step, (rate, factor) in enumerate(zip(rates, factors, strict=True)):
        old.grad, new.grad = gradient(step).split([FIRST_NEW, ROWS - FIRST_NEW])
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, rate * factor
        optimizer.step()
    return torch.cat([old, new]).detach()


def assert_within_last_bits(found: torch.Tensor, expected: torch.Tensor, rates, factors) -> None:
    """Allow each step one rounding of the weight and a few of its update."""
    moved = sum(rate * factor for rate, factor in zip(rates, factors, strict=True))
    bound = (len(rates) * expected.abs() + 8 * moved) * torch.finfo(torch.float32).eps
    assert ((found - expected).abs() <= bound).all()


def test_only_matrices_between_the_layers_decay():
    from transformers import LlamaConfig, LlamaForCausalLM  # slow, and the ranks below need it not

    shape = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    decayed, plain = build_optimizer(model, config_of(weight_decay=0.1)).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all("proj" in names[id(p)] for p in decayed["params"])
    assert all("norm" in names[id(p)] or "embed" in names[id(p)] for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_new_rows_of_one_parameter_move_as_a_group_of_their_own():
    found = train_one_parameter(Embedding(start()), RATES, FACTORS)
    expected = train_two_groups(RATES, FACTORS)
    assert torch.equal(found[:FIRST_NEW], expected[:FIRST_NEW])
    assert_within_last_bits(found, expected, RATES, FACTORS)
    plain = train_two_groups(RATES, [1.0] * 5)
    assert (found - plain)[FIRST_NEW:].abs().max() > 1e-2


def test_a_rate_below_the_last_bit_of_the_weight_still_gives_the_new_rows_theirs():
    # The first steps of a warm-up of 10,000, with none for the new rows: the change that such a
    # step makes is lost in most weights, so nothing could be had by scaling it.
    rates, factors = [5e-9 * (s + 1) for s in range(5)], [1e4 / (s + 1) for s in range(5)]
    found = train_one_parameter(Embedding(start()), rates, factors)
    assert_within_last_bits(found, train_two_groups(rates, factors), rates, factors)
    assert (found - start())[FIRST_NEW:].abs().max() > 1e-4


def test_a_factor_of_one_changes_nothing():
    found = train_one_parameter(Embedding(start()), RATES, [1.0] * 5)
    assert torch.equal(found, train_two_groups(RATES, [1.0] * 5))


def test_a_model_without_new_rows_or_without_a_gradient_stays():
    model = Embedding(start())
    optimizer = build_optimizer(model, config_of())
    weight = model.embed_tokens.weight
    with NewRowsRate(optimizer, weight, FIRST_NEW).scaled(3.0):
        optimizer.step()
    assert torch.equal(weight, start())
    weight.grad = gradient(0)
    with NewRowsRate(optimizer, weight).scaled(3.0):  # no row reaches Llama's vocabulary
        optimizer.step()
    assert torch.equal(weight.detach(), train_two_groups([1e-2], [1.0]))
    weight.grad, before = None, weight.detach().clone()
    with NewRowsRate(optimizer, weight, FIRST_NEW).scaled(3.0):
        optimizer.step()
    assert torch.equal(weight, before)


def test_an_embedding_that_the_optimizer_lacks_or_decays_is_refused():
    model = Embedding(start())
    with pytest.raises(ContractError, match="not among"):
        NewRowsRate(build_optimizer(model, config_of()), nn.Parameter(start()), FIRST_NEW)
    decaying = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    with pytest.raises(ContractError, match="optimizer decays the embedding"):
        NewRowsRate(decaying, model.embed_tokens.weight, FIRST_NEW)


def shard_and_train(ranks: Ranks, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    model = Embedding(start())
    sharded = distribute_tensor(model.embed_tokens.weight.detach(), mesh, [Shard(0)])
    model.embed_tokens.weight = nn.Parameter(sharded)  # rows 0 to 20 and 21 to 40
    starts = [local_new_rows(model.embed_tokens.weight, row) for row in (0, 10, 21, 25, 41)]
    found = train_one_parameter(model, RATES, FACTORS)
    torch.save({"weight": found, "starts": starts}, folder / f"{ranks.rank}.pt")


@pytest.mark.slow
def test_new_rows_of_a_sharded_embedding_move_as_those_of_a_whole_one(tmp_path):
    run_ranks(shard_and_train, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = train_one_parameter(Embedding(start()), RATES, FACTORS)
    assert torch.equal(first["weight"], whole)
    assert torch.equal(second["weight"], whole)
    assert first["starts"] == [0, 10, 21, 21, 21]
    assert second["starts"] == [0, 0, 0, 4, 20]
