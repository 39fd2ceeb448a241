from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.helpers import assert_same_weights
from tests.training.llamas import adamw, loss_of, tiny_llama, whole
from tests.training.ranks import run_ranks
from tests.training.saving import STATE, progress_of, writer_in
from training.checkpoint.manifest import step_name
from training.checkpoint.reader import load_checkpoint
from training.model.average import WeightAverage
from training.model.distributed import Ranks, gradient_sync, parallelise

DECAY = 0.8


class OneWeight(torch.nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1,), value, dtype=torch.float32))
        self.frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=40), st.floats(0.01, 0.9999))
def test_an_average_is_the_sum_that_its_decays_make(values, decay):
    model = OneWeight(values[0])
    average = WeightAverage(model, decay)
    expected = values[0]
    for steps, value in enumerate(values[1:], start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(steps)
        kept = min(decay, (1 + steps) / (10 + steps))
        expected = kept * expected + (1 - kept) * value
    assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert min(values) - 1e-4 <= average.tensors["weight"].item() <= max(values) + 1e-4
    assert set(average.tensors) == {"weight"}, "what is not trained is not averaged"


def test_weights_of_few_bits_have_an_average_of_many():
    model = OneWeight(1.0).bfloat16()
    average = WeightAverage(model, DECAY)
    with torch.no_grad():
        model.weight.fill_(1.0078125)  # the next BF16
    average.update(100)
    assert average.tensors["weight"].dtype == torch.float32
    assert 1.0 < average.tensors["weight"].item() < 1.0078125
    with average.in_place_of_weights():
        assert model.weight.item() in (1.0, 1.0078125)
    assert model.weight.item() == 1.0078125


def test_weights_come_back_even_from_a_failure():
    model = OneWeight(3.0)
    average = WeightAverage(model, DECAY)
    with torch.no_grad():
        model.weight.fill_(5.0)
    with pytest.raises(ZeroDivisionError), average.in_place_of_weights():
        assert 1 / (model.weight.item() - 3.0), "the average is 3.0"
    assert model.weight.item() == 5.0
    average.restart()
    assert average.tensors["weight"].item() == 5.0


def train_averaged(ranks: Ranks, model, plain, optimizer, numbers, average) -> list[dict]:
    """Take steps on all ranks' micro-batches; return the whole weights after each."""
    courses = []
    for number in numbers:
        with gradient_sync(model, last=True):
            loss_of(model, ranks.world * number + ranks.rank).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(number + 1)
        courses.append({name: whole(p) for name, p in plain.named_parameters()})
    return courses


def averaged(first: dict, courses: list[dict]) -> dict:
    """The oracle: average whole weights, each by itself."""
    found = {name: tensor.clone() for name, tensor in first.items()}
    for steps, weights in enumerate(courses, start=1):
        kept = min(DECAY, (1 + steps) / (10 + steps))
        for name, tensor in weights.items():
            found[name] = torch.lerp(found[name], tensor, 1 - kept)
    return found


def in_ranks(ranks: Ranks, folder: Path) -> None:
    for parallel in ("fsdp", "ddp"):
        plain = tiny_llama()
        first = {name: p.detach().clone() for name, p in plain.named_parameters()}
        model = parallelise(
            plain, ranks, parallel, "fp32", compile=False, activation_checkpointing=False
        )
        optimizer, average = adamw(plain), WeightAverage(plain, DECAY)
        courses = train_averaged(ranks, model, plain, optimizer, range(2), average)
        with writer_in(folder / parallel, ranks) as writer:
            writer.start(progress_of(2), plain, optimizer, STATE, average=average)
            writer.finish()
        courses += train_averaged(ranks, model, plain, optimizer, range(2, 4), average)
        expected = averaged(first, courses)
        assert_same_weights({n: whole(t) for n, t in average.tensors.items()}, expected)
        before = {name: whole(p) for name, p in plain.named_parameters()}
        with average.in_place_of_weights():
            assert_same_weights({n: whole(p) for n, p in plain.named_parameters()}, expected)
            with torch.no_grad():
                loss = float(loss_of(model, 7))
            for module in [plain, *plain.model.layers]:
                getattr(module, "reshard", lambda: None)()
        assert_same_weights({n: whole(p) for n, p in plain.named_parameters()}, before)
        alone = tiny_llama()
        alone.load_state_dict(expected, strict=False)
        alone.tie_weights()
        with torch.no_grad():
            assert loss == pytest.approx(float(loss_of(alone, 7)), rel=1e-6)
        path = folder / parallel / step_name(2)  # and once more from the checkpoint
        load_checkpoint(path, plain, optimizer, ranks, average)
        assert_same_weights(
            {n: whole(t) for n, t in average.tensors.items()}, averaged(first, courses[:2])
        )
        again = train_averaged(ranks, model, plain, optimizer, range(2, 4), average)
        assert_same_weights(again[-1], courses[-1])
        assert_same_weights({n: whole(t) for n, t in average.tensors.items()}, expected)


@pytest.mark.slow
def test_ranks_average_their_shards_as_one_averages_all(tmp_path):
    run_ranks(in_ranks, 2, tmp_path)
