"""The learning-rate range test: it stops itself, says a safe rate, and changes nothing."""

import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koe.errors import ConfigError, ContractError
from tests.training.helpers import one_thread, poison, small_config, small_shards
from tests.training.logs import read_page
from tests.training.ranks import run_ranks
from tests.webpage import check_accessible, check_loads_nothing
from training import find_rate as module
from training import loop
from training.config import GuardConfig, RateTestConfig
from training.find_rate import Point, Sweep, advise, find_rate, rates, read_findings
from training.guard import Limits
from training.metrics import read_metrics
from training.model.distributed import single
from training.places import RemoteFolder
from training.report.find_rate import rate_page, write_rate_page

__all__ = ["one_thread"]

RANKS = single("cpu")
LIMITS = Limits(15.0, 1000.0, math.inf)
SETTINGS = RateTestConfig(steps=60)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


def swept(losses, settings=SETTINGS, norm=1.0):
    """Return the sweep over these losses, up to where it stops, and why."""
    sweep, why = Sweep(settings, LIMITS), ""
    for rate, loss in zip(rates(settings), losses, strict=False):
        why = sweep.add(rate, loss, norm)
        if why:
            break
    return sweep, why


def test_rates_rise_by_the_same_factor():
    found = rates(RateTestConfig(steps=71, lowest_rate=1e-7, highest_rate=1.0))
    assert len(found) == 71
    assert (found[0], found[-1]) == (pytest.approx(1e-7), pytest.approx(1.0))
    assert found[10] / found[0] == pytest.approx(10)
    with pytest.raises(ValueError, match="must be below"):
        RateTestConfig(lowest_rate=1.0, highest_rate=1e-3)


CALM = st.lists(st.floats(1.0, 14.0), max_size=50)


@pytest.mark.law
@given(CALM, st.sampled_from([math.nan, math.inf, -math.inf, 15.1, 1e30]))
def test_the_test_stops_itself_at_what_is_not_finite_or_beyond_the_limits(before, bad):
    for loss, norm in ((bad, 1.0), (2.0, bad * 1000)):
        sweep, why = swept(before)
        if why:  # the loss rose before
            continue
        number = len(sweep.points)
        assert sweep.add(rates(SETTINGS)[number], loss, norm)
        assert len(sweep.points) == number  # nothing follows from such a step
        assert all(math.isfinite(point.smoothed) for point in sweep.points)


@pytest.mark.law
@given(CALM, st.floats(1.0, 12.0))
def test_the_test_stops_itself_once_the_loss_stays_higher(before, lowest):
    """However the loss went before, one that stays a quarter higher ends the test."""
    settings = RateTestConfig(steps=400, max_rise=1.1)
    calm = [*before, *[lowest] * 30]
    _, why = swept([*calm, *[1.25 * lowest] * 30], settings)
    assert why


@given(CALM)
def test_a_safe_rate_lies_below_both_bounds(losses):
    sweep, why = swept(losses)
    advice = advise(sweep.points, why)
    if advice.safe_rate is None:
        assert advice.reason
        return
    assert advice.safe_rate <= advice.steepest_rate <= advice.rising_rate
    assert advice.safe_rate <= advice.rising_rate / 10
    assert advice.rising_rate in [point.rate for point in sweep.points]


def test_the_safe_rate_of_a_known_curve():
    """Loss 8, falling evenly in log rate from 1e-5 on, lowest at 1e-2, then rising steeply."""
    settings = RateTestConfig(steps=141, lowest_rate=1e-7, highest_rate=1.0)

    def loss(rate):
        exponent = math.log10(rate)
        if exponent < -5:
            return 8.0
        return 8.0 - 2 * (exponent + 5) if exponent < -2 else 2.0 + 10 * (exponent + 2)

    sweep, why = swept([loss(rate) for rate in rates(settings)], settings)
    advice = advise(sweep.points, why)
    assert "smoothed loss" in why
    assert 1e-2 <= advice.rising_rate < 2e-2
    assert 1e-5 < advice.steepest_rate < 1e-2
    assert advice.safe_rate == min(advice.steepest_rate, advice.rising_rate / 10)
    assert sweep.points[-1].rate < 0.05


def test_what_does_not_tell_is_not_guessed():
    flat = [Point(rate, 3.0, 3.0, 1.0) for rate in rates(SETTINGS)]
    assert advise(flat, "").safe_rate is None
    assert "never fell" in advise(flat, "").reason
    assert advise(flat[:2], "the loss was nan").reason == "there were 2 steps: the loss was nan"


def files_of(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "find_rate.json"
    }


def test_a_new_run_is_tested_and_nothing_is_left_of_it(shards, tmp_path, capsys):
    config = small_config(rate_test=RateTestConfig(steps=80, lowest_rate=1e-5, highest_rate=100.0))
    steps = find_rate(config, shards, tmp_path, RANKS)
    assert [path.name for path in tmp_path.iterdir()] == ["find_rate.json"]
    found = read_findings(tmp_path)
    assert len(found["points"]) == steps < 80  # a rate of 100 was not reached
    assert found["stopped"]
    assert 1e-5 < found["safe_rate"] < found["rising_rate"] / 9
    assert found["step"] == 0
    assert min(point["smoothed"] for point in found["points"]) < found["points"][0]["loss"] - 1
    assert "learning rate 1.00e-05  loss" in capsys.readouterr().err


def test_the_newest_checkpoint_is_tested_and_the_run_goes_on_as_if_nothing_were(shards, tmp_path):
    config = small_config(max_steps=4, rate_test=RateTestConfig(steps=20, highest_rate=1e-3))
    loop.train(config, shards, tmp_path / "run", RANKS)
    before = files_of(tmp_path / "run")
    find_rate(config, shards, tmp_path / "run", RANKS)
    assert files_of(tmp_path / "run") == before
    found = read_findings(tmp_path / "run")
    assert (found["step"], found["data_step"]) == (4, 4)
    assert found["points"][0]["loss"] < read_metrics(tmp_path / "run")[0]["loss"]


def test_a_run_at_a_url_is_tested_too(shards, tmp_path):
    place = f"memory://{tmp_path.name}/train"
    config = small_config(rate_test=RateTestConfig(steps=20, highest_rate=1e-3))
    find_rate(config, shards, place, RANKS)
    write_rate_page(place, read_findings(place))
    assert sorted(RemoteFolder(place).sizes()) == ["find_rate.html", "find_rate.json"]


def in_ranks(ranks, shards, folder):
    settings = RateTestConfig(steps=40, lowest_rate=1e-4, highest_rate=1.0)
    config = small_config(workers=2, accumulation_steps=1, rate_test=settings)
    find_rate(config, shards, folder, ranks)


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(shards, tmp_path):
    run_ranks(in_ranks, 2, shards, tmp_path / "two")
    settings = RateTestConfig(steps=40, lowest_rate=1e-4, highest_rate=1.0)
    find_rate(small_config(rate_test=settings), shards, tmp_path / "one", RANKS)
    two, one = (read_findings(tmp_path / of)["points"] for of in ("two", "one"))
    assert [point["loss"] for point in two[:25]] == pytest.approx(
        [point["loss"] for point in one[:25]], rel=1e-3
    )


@pytest.mark.parametrize("value", [float("nan"), 1e9])
def test_gradients_that_explode_end_the_test(shards, tmp_path, monkeypatch, value):
    updates, update = [], module.update

    def spoilt_after_5(run, rate, factor):
        update(run, rate, factor)
        updates.append(rate)
        if len(updates) == 5:
            poison(run, value)

    monkeypatch.setattr(module, "update", spoilt_after_5)
    config = small_config(rate_test=SETTINGS, guard=GuardConfig(max_gradient_norm=100))
    assert find_rate(config, shards, tmp_path, RANKS) == 5
    assert len(updates) == 5
    assert "gradient norm was" in read_findings(tmp_path)["stopped"]


def test_findings_that_are_not_there_or_damaged_are_named(tmp_path):
    with pytest.raises(ConfigError, match="is not there"):
        read_findings(tmp_path)
    (tmp_path / "find_rate.json").write_text("{")
    with pytest.raises(ContractError, match="cannot be read"):
        read_findings(tmp_path)


def findings(**changes):
    points = [
        {"rate": rate, "loss": 3.0, "smoothed": 3.0, "gradient_norm": 1.0}
        for rate in rates(SETTINGS)
    ]
    found = {
        "step": 0, "learning_rate": 5e-5, "stopped": "the loss rose", "safe_rate": 1e-4,
        "steepest_rate": 2e-4, "rising_rate": 1e-3, "reason": "a rule", "points": points,
    }  # fmt: skip
    return found | changes


def test_the_page_shows_the_curve_and_the_rates(tmp_path):
    page = read_page(write_rate_page(tmp_path, findings()))
    assert page.tiles["Safe rate"] == "1.00e-04"
    assert page.tiles["Begins to rise"] == "1.00e-03"
    names = [trace["name"] for trace in page.traces("Loss")]
    assert names == ["loss", "smoothed", "safe", "falls fastest", "begins to rise"]
    assert "The test ended because the loss rose." in page.text
    check_accessible(page)
    check_loads_nothing(page)


def test_a_page_without_advice_says_why():
    nothing = {"safe_rate": None, "steepest_rate": None, "rising_rate": None, "points": []}
    page = rate_page("run", findings(**nothing, reason="there were 0 steps", stopped=""))
    assert "No safe rate: there were 0 steps. The test ended at its highest rate." in page
