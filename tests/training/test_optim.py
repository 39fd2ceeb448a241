import math

import pytest

from tests.training.helpers import small_config, small_model
from training.optim import build_optimizer, learning_rate


def test_warmup_is_linear_and_the_cosine_ends_at_its_share():
    config = small_config(
        learning_rate=6e-5, warmup_steps=10, max_steps=110, min_learning_rate_share=0.1
    )
    rates = [learning_rate(step, config) for step in range(110)]
    for step in range(10):
        assert rates[step] == pytest.approx(6e-5 * (step + 1) / 10)
    assert max(rates) == pytest.approx(6e-5)
    assert rates[-1] == pytest.approx(6e-6)
    for step in range(10, 110):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 10) / 99))
        assert rates[step] == pytest.approx(6e-5 * (0.1 + 0.9 * cosine))
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(10_000, config) == pytest.approx(6e-6)


@pytest.mark.parametrize("warmup", [0, 1, 6, 50])
def test_every_warmup_gives_positive_rates(warmup):
    config = small_config(warmup_steps=warmup, max_steps=6)
    assert all(0 < learning_rate(step, config) <= 1e-2 for step in range(6))


def test_only_matrices_between_the_layers_decay():
    model = small_model()
    decayed, plain = build_optimizer(model, small_config(weight_decay=0.1)).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all("proj" in names[id(p)] for p in decayed["params"])
    assert all("norm" in names[id(p)] or "embed" in names[id(p)] for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
