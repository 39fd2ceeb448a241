import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from training.config import NewRowsConfig, TrainConfig
from training.model.schedule import decay, learning_rate, new_rows_factor

SCHEDULES = ["cosine", "linear", "wsd", "constant"]
PEAK = 1e-2


def config_of(**changes) -> TrainConfig:
    return TrainConfig(
        **{"learning_rate": PEAK, "warmup_steps": 2, "max_steps": 6, **changes}  # pyright: ignore
    )


def rates_of(config):
    return [learning_rate(step, config) for step in range(config.max_steps)]


def transformers_rates(name, steps, **settings):
    """The plain oracle: the rates that a schedule of transformers gives in so many steps."""
    from transformers import optimization

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = getattr(optimization, name)(optimizer, **settings)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def assert_same_course(config, expected):
    """Compare with rates of transformers, whose first step has the rate 0, and so is left out here.

    Its decay reaches the end one step after the last; `expected` is for one step less.
    """
    warmup, found = config.num_warmup_steps, rates_of(config)
    assert found[:warmup] == pytest.approx(expected[1 : warmup + 1])
    assert found[warmup:] == pytest.approx(expected[warmup : config.max_steps])


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_cosine_is_that_of_transformers(warmup, share):
    config = config_of(warmup_steps=warmup, max_steps=40, min_learning_rate_share=share)
    expected = transformers_rates(
        "get_cosine_with_min_lr_schedule_with_warmup", 40,
        num_warmup_steps=warmup, num_training_steps=39, min_lr_rate=share,
    )  # fmt: skip
    assert_same_course(config, expected)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_linear_is_that_of_transformers(warmup):
    config = config_of(
        schedule="linear", warmup_steps=warmup, max_steps=40, min_learning_rate_share=0.0
    )
    expected = transformers_rates(
        "get_linear_schedule_with_warmup", 40, num_warmup_steps=warmup, num_training_steps=39
    )
    assert_same_course(config, expected)


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_wsd_is_that_of_transformers(warmup, share):
    config = config_of(
        schedule="wsd", warmup_steps=warmup, max_steps=40, min_learning_rate_share=share,
        decay_share=0.25,
    )  # fmt: skip
    expected = transformers_rates(
        "get_wsd_schedule", 40, num_warmup_steps=warmup, num_decay_steps=10, decay_type="linear",
        num_training_steps=39, min_lr_ratio=share,
    )  # fmt: skip
    if share:  # there the warm-up starts from that share
        expected[:warmup] = [PEAK * step / max(1, warmup) for step in range(warmup)]
    assert_same_course(config, expected)


def test_the_default_is_the_published_one():
    config = TrainConfig()
    assert (config.schedule, config.num_warmup_steps, config.max_steps) == (
        "cosine",
        10_000,
        100_000,
    )
    for step in (0, 9_999, 10_000, 55_000, 99_999):
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - 10_000) / 89_999))
        ramp = min(1.0, (step + 1) / 10_000)
        assert learning_rate(step, config) == pytest.approx(5e-5 * ramp * (0.1 + 0.9 * cosine))


@st.composite
def configs(draw):
    steps = draw(st.integers(1, 400))
    warmup = draw(
        st.fixed_dictionaries({"warmup_steps": st.integers(0, 500)})
        | st.fixed_dictionaries({"warmup_share": st.floats(0, 1)})
    )
    return config_of(
        **{"warmup_steps": None, **warmup},
        max_steps=steps,
        schedule=draw(st.sampled_from(SCHEDULES)),
        min_learning_rate_share=draw(st.floats(0, 1)),
        decay_share=draw(st.floats(0.001, 1)),
    )


@given(configs())
def test_a_rate_rises_to_its_peak_and_falls_to_its_share(config):
    rates, warmup = rates_of(config), config.num_warmup_steps
    assert all(0 <= rate <= PEAK * (1 + 1e-12) for rate in rates)
    rising, falling = rates[:warmup], rates[max(0, warmup - 1) :]
    assert all(a < b for a, b in pairwise(rising))
    assert all(a >= b * (1 - 1e-12) for a, b in pairwise(falling))
    if warmup < config.max_steps - 1:
        share = 1.0 if config.schedule == "constant" else config.min_learning_rate_share
        assert rates[-1] == pytest.approx(PEAK * share, abs=1e-15)
        assert max(rates) == pytest.approx(PEAK)
    assert learning_rate(10 * config.max_steps + 1000, config) == pytest.approx(
        PEAK * decay(config.max_steps + 10**6, config)
    )


@given(configs())
def test_no_rate_leaps(config):
    """From step to step a rate changes by no more than the steepest part of its course."""
    assume(config.num_warmup_steps < config.max_steps - 1)
    spans = {
        "cosine": (config.max_steps - 1 - config.num_warmup_steps) * 2 / math.pi,
        "linear": config.max_steps - 1 - config.num_warmup_steps,
        "wsd": min(
            math.ceil(config.decay_share * config.max_steps),
            config.max_steps - 1 - config.num_warmup_steps,
        ),
        "constant": math.inf,
    }
    steepest = max(1 / max(1, config.num_warmup_steps), 1 / spans[config.schedule])
    for before, after in pairwise(rates_of(config)):
        assert abs(after - before) <= PEAK * steepest * (1 + 1e-9)


@given(configs(), st.integers(1, 50))
def test_a_share_of_the_steps_warms_up_as_so_many_steps(config, extra):
    share = extra / 100
    by_share = config_of(max_steps=config.max_steps, warmup_steps=None, warmup_share=share)
    by_steps = config_of(
        max_steps=config.max_steps, warmup_steps=math.ceil(share * config.max_steps)
    )
    assert rates_of(by_share) == rates_of(by_steps)


def test_a_share_stands_alone_and_both_together_are_refused():
    assert TrainConfig(warmup_share=0.03).num_warmup_steps == 3000
    stored = TrainConfig(warmup_share=0.03).model_dump()
    assert TrainConfig.model_validate(stored).num_warmup_steps == 3000
    for settings in ({"warmup_steps": 5, "warmup_share": 0.1}, {"warmup_steps": None}):
        with pytest.raises(ValidationError, match="exactly one of warmup_steps and warmup_share"):
            TrainConfig(**settings)


@given(configs())
def test_new_rows_without_settings_have_the_rate_of_the_rest(config):
    assert {new_rows_factor(step, config) for step in range(config.max_steps)} == {1.0}


@given(configs(), st.integers(0, 500))
def test_new_rows_have_their_own_peak_and_warmup_and_the_same_decay(config, own_warmup):
    new_rows = NewRowsConfig(learning_rate_factor=3.0, warmup_steps=own_warmup)
    config = config.model_copy(update={"new_rows": new_rows})
    for step in range(config.max_steps):
        rate = learning_rate(step, config) * new_rows_factor(step, config)
        ramp = min(1.0, (step + 1) / own_warmup) if own_warmup else 1.0
        assert rate == pytest.approx(3 * PEAK * ramp * decay(step, config))


def test_a_rate_of_zero_at_the_end_leaves_the_factor_as_it_is():
    new_rows = NewRowsConfig(learning_rate_factor=2.0, warmup_steps=1)
    config = config_of(min_learning_rate_share=0.0, new_rows=new_rows)
    assert learning_rate(5, config) == pytest.approx(0.0, abs=1e-12)
    assert new_rows_factor(5, config) == 2.0
