import json
import math

import numpy as np
import pytest

from training.config import GuardConfig
from training.guard import Action, Guard


def guard(**changes) -> Guard:
    return guard_at(1.0, **changes)


def guard_at(learning_rate: float, **changes) -> Guard:
    return Guard(GuardConfig(**{"window_steps": 16, "within_steps": 32, **changes}), learning_rate)


def calm(guard: Guard, steps: int, start: int = 0, seed: int = 0, norm: float = 1.0) -> int:
    """Feed ordinary steps, which must all be accepted or clipped; return the next step."""
    rng = np.random.default_rng(seed)
    for step in range(start, start + steps):
        verdict = guard.judge(step, 4 + 0.05 * rng.normal(), norm * math.exp(0.1 * rng.normal()))
        assert verdict.action.applies, verdict
    return start + steps


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient norm"])
def test_what_is_not_finite_is_skipped_from_the_first_step(value, where):
    loss, norm = (value, 1.0) if where == "loss" else (4.0, value)
    verdict = guard().judge(0, loss, norm)
    assert verdict.action is Action.SKIP
    assert verdict.reason == f"{where} is {value}"


def test_absolute_limits_hold_until_the_window_is_full():
    one = guard(max_loss=10, max_gradient_norm=50)
    assert one.judge(0, 9.9, 49.0).action is Action.ACCEPT
    assert one.judge(1, 10.1, 1.0).action is Action.SKIP
    assert one.judge(2, 4.0, 50.1).action is Action.SKIP
    step = calm(one, 15, 3)
    assert one.limits().loss < 5, "the window is full now"
    assert not one.judge(step, 6.0, 1.0).action.applies


def test_a_spike_is_skipped_and_a_high_norm_clipped_to_the_median():
    one = guard()
    step = calm(one, 30)
    limits = one.limits()
    assert 4 < limits.loss < 5.5
    assert 1 < limits.clip < limits.gradient_norm < 4
    between = (limits.clip + limits.gradient_norm) / 2
    verdict = one.judge(step, 4.0, between)
    assert verdict.action is Action.CLIP
    assert verdict.clip_to == pytest.approx(1.0, abs=0.1)
    assert one.judge(step + 1, 4.0, 10.0).action is Action.SKIP
    assert one.judge(step + 2, 7.0, 1.0).action is Action.SKIP


def test_limits_are_those_of_median_and_deviation():
    one = guard(skip_sigmas=6, clip_sigmas=3, min_deviation=0.001)
    losses, norms = [], []
    rng = np.random.default_rng(1)
    for step in range(40):
        losses.append(4 + 0.1 * rng.uniform())
        norms.append(1 + 0.1 * rng.uniform())
        one.judge(step, losses[-1], norms[-1])
    limits = one.limits()
    for values, sigmas, found in (
        (losses, 6, limits.loss),
        (norms, 6, limits.gradient_norm),
        (norms, 3, limits.clip),
    ):
        last = np.array(values[-16:])
        deviation = 1.4826 * np.median(abs(last - np.median(last)))
        assert found == pytest.approx(np.median(last) + sigmas * deviation)


def test_rejected_values_stay_out_of_the_window():
    one = guard(roll_back_after_skips=1000, lower_rate_after_skips=1000)
    step = calm(one, 20)
    before = one.limits()
    for more in range(50):
        assert one.judge(step + more, 50.0, 90.0).action is Action.SKIP
    assert one.limits() == before


def test_many_clipped_steps_do_not_lift_the_limit_without_end():
    one = guard()
    step = calm(one, 20)
    first = one.limits()
    for more in range(4):
        limits = one.limits()
        one.judge(step + more, 4.0, (limits.clip + limits.gradient_norm) / 2)
    assert one.limits().gradient_norm < 1.5 * first.gradient_norm


def test_the_ladder_lowers_rolls_back_and_stops():
    one = guard(lower_rate_after_skips=2, roll_back_after_skips=5, max_rollbacks=1)
    step = calm(one, 20)
    saved = one.state_dict()
    found = []
    for more in range(5):
        found.append(one.judge(step + more, math.nan, 1.0).action)
    wanted = [Action.SKIP, Action.LOWER_RATE, Action.SKIP, Action.LOWER_RATE, Action.ROLL_BACK]
    assert found == wanted
    assert one.rate_factor == 0.25
    one.roll_back_to(saved)
    assert one.state_dict()["rollbacks"] == 1
    assert one.rate_factor == 0.25, "what was lowered stays so"
    step += 500
    assert one.judge(step, math.nan, 1.0).action is Action.SKIP, "the count begins anew"
    for more in range(1, 5):
        verdict = one.judge(step + more, math.nan, 1.0)
    assert verdict.action is Action.STOP
    assert "after 1 rollbacks" in verdict.reason


def test_skips_far_apart_do_not_add_up():
    one = guard(within_steps=10, lower_rate_after_skips=2)
    step = calm(one, 20)
    for _ in range(6):
        assert one.judge(step, math.nan, 1.0).action is Action.SKIP
        step = calm(one, 11, step + 1)


def test_a_lowered_rate_is_restored_after_enough_accepted_steps():
    one = guard(lower_rate_after_skips=1, restore_rate_after_steps=5)
    step = calm(one, 20)
    assert one.judge(step, math.nan, 1.0).action is Action.LOWER_RATE
    assert one.rate_factor == 0.5
    step = calm(one, 4, step + 1)
    assert not one.restore_rate_if_stable()
    calm(one, 1, step)
    assert one.restore_rate_if_stable()
    assert one.rate_factor == 1.0
    assert not one.restore_rate_if_stable()


def test_a_slow_climb_of_the_gradient_norm_lowers_the_rate():
    one = guard(climb_factor=3.0)
    step, norm, told = 0, 1.0, []
    rng = np.random.default_rng(0)
    while norm < 12 and step < 2000:
        verdict = one.judge(step, 4.0, norm * math.exp(0.1 * rng.normal()))
        assert verdict.action.applies, "each step is near the ones before it"
        if why := one.lower_rate_if_norm_climbed():
            told.append((norm, why))
        norm *= 1.005
        step += 1
    assert [round(math.log(norm, 3)) for norm, _ in told] == [1, 2], told
    assert "times its lowest" in told[0][1]
    assert one.rate_factor == 0.25


def test_the_state_survives_json_and_gives_the_same_verdicts():
    one, other = guard(), guard()
    step = calm(one, 20)
    one.judge(step, math.nan, 1.0)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    rng = np.random.default_rng(3)
    for more in range(1, 60):
        loss, norm = 4 + 0.5 * abs(rng.normal()), math.exp(0.5 * rng.normal())
        assert one.judge(step + more, loss, norm) == other.judge(step + more, loss, norm)
    assert one.state_dict() == other.state_dict()


def test_a_guard_that_is_off_stops_only_at_what_is_not_finite():
    one = guard(enabled=False)
    for step in range(40):
        assert one.judge(step, 10.0**step, 10.0**step).action is Action.ACCEPT
    assert not one.lower_rate_if_norm_climbed()
    assert one.judge(41, math.nan, 1.0).action is Action.STOP


def test_an_ordinary_run_is_left_alone():
    """2,000 steps of a falling noisy loss and a gradient norm that follows it."""
    one = Guard(GuardConfig(), 1.0)
    rng = np.random.default_rng(0)
    actions = []
    for step in range(2000):
        level = 3.5 + 8.5 * math.exp(-step / 150)
        norm = (0.4 + 4 * math.exp(-step / 100)) * math.exp(0.25 * rng.normal())
        actions.append(one.judge(step, level + 0.08 * rng.normal(), norm).action)
        assert not one.lower_rate_if_norm_climbed()
    assert actions.count(Action.SKIP) == 0
    assert max(actions) <= Action.CLIP
    assert actions.count(Action.CLIP) < 20


def lowered(lowerings: int) -> dict:
    """The state of a guard that has lowered a rate of 1 so often."""
    one = guard(lower_rate_after_skips=1, roll_back_after_skips=99)
    step = calm(one, 20)
    for more in range(lowerings):
        assert one.judge(step + more, math.nan, 1.0).action is Action.LOWER_RATE
    return json.loads(json.dumps(one.state_dict()))


@pytest.mark.parametrize(
    ("lowerings", "setting", "rate"),
    [
        (1, 1.0, 0.5),  # as it was
        (1, 0.5, 0.5),  # the user has lowered it as much: not a second time
        (1, 0.3, 0.3),
        (1, 0.8, 0.5),  # the guard's is the lower one
        (2, 0.5, 0.25),
        (2, 0.2, 0.2),
        (1, 1.2, 0.6),  # raised on purpose, and still lowered
        (0, 0.5, 0.5),
    ],
)
def test_a_rate_that_the_user_has_lowered_is_not_lowered_again_for_the_same_spike(
    lowerings, setting, rate
):
    one = guard_at(setting, lower_rate_after_skips=1, restore_rate_after_steps=5)
    one.load_state_dict(lowered(lowerings))
    assert one.rate_factor * setting == pytest.approx(rate)
    assert one.judge(1000, math.nan, 1.0).action is Action.LOWER_RATE
    assert one.rate_factor * setting == pytest.approx(rate / 2), "a new spike lowers it further"
    step = 1001
    for _ in range(4):  # what was lowered is restored up to the setting, and no further
        step = calm(one, 5, step)
        one.restore_rate_if_stable()
        assert one.rate_factor <= 1
    assert one.rate_factor == 1
    assert not one.restore_rate_if_stable(), "nothing is left to restore"


def test_a_state_without_a_setting_is_one_of_the_present_setting():
    state = lowered(1)
    del state["learning_rate"]
    one = guard_at(0.4)
    one.load_state_dict(state)
    assert one.rate_factor == 0.5


def test_a_rollback_keeps_the_lower_of_two_rates():
    before, one = lowered(0), guard_at(0.5, lower_rate_after_skips=1)
    one.load_state_dict(before)
    assert one.judge(100, math.nan, 1.0).action is Action.LOWER_RATE
    one.roll_back_to(before)
    assert one.rate_factor == 0.5, "of the setting of this process"
    one.roll_back_to(lowered(3))
    assert one.rate_factor == 0.25
