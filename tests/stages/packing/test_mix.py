import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.packing.mix import mix

FALLING = [(0.0, {"text": 2, "speech": 1}), (1.0, {"text": 1, "speech": 1})]


def share_integral(points, num_rows, steps=20_000):
    """Text rows wanted before each row, by summing the interpolated share finely."""
    shares = [p.get("text", 0) / (p.get("text", 0) + p.get("speech", 0)) for _, p in points]
    grid = np.linspace(0, 1, steps + 1)
    share = np.interp(grid, [place for place, _ in points], shares)
    integral = np.concatenate([[0], np.cumsum((share[1:] + share[:-1]) / 2 / steps)])
    return num_rows * np.interp(np.arange(num_rows + 1) / max(num_rows, 1), grid, integral)


parts = st.fixed_dictionaries(
    {}, optional={"text": st.integers(0, 5), "speech": st.integers(0, 5)}
).filter(lambda p: sum(p.values()) > 0)


@st.composite
def schedules(draw):
    inner = draw(st.lists(st.integers(1, 10), max_size=3, unique=True))
    return [(place / 10, draw(parts)) for place in [0, *sorted(inner)]]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), schedules())
def test_every_stretch_keeps_to_the_schedule(num_text, num_speech, ratio):
    is_text, text_left, speech_left = mix(num_text, num_speech, ratio)
    num_rows = len(is_text)
    assert int(is_text.sum()) + text_left == num_text
    assert num_rows - int(is_text.sum()) + speech_left == num_speech
    assert min(text_left, speech_left) >= 0
    deviation = np.concatenate([[0], np.cumsum(is_text)]) - share_integral(ratio, num_rows)
    # any window: the difference of two deviations
    assert deviation.max() - deviation.min() <= 1 + 0.02


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), schedules())
def test_one_row_more_would_need_what_is_missing(num_text, num_speech, ratio):
    is_text, text_left, speech_left = mix(num_text, num_speech, ratio)
    if text_left and speech_left:
        pytest.fail(f"{text_left} rows of text and {speech_left} of speech are left")
    # what it used is all it needs: the same rows again, and nothing left
    used = int(is_text.sum())
    again, *left = mix(used, len(is_text) - used, ratio)
    assert left == [0, 0]
    assert (again == is_text).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500))
def test_natural_uses_everything_evenly(num_text, num_speech):
    is_text, *left = mix(num_text, num_speech, "natural")
    assert left == [0, 0]
    assert (int(is_text.sum()), len(is_text)) == (num_text, num_text + num_speech)
    wanted = np.arange(len(is_text) + 1) * num_text / max(len(is_text), 1)
    deviation = np.concatenate([[0], np.cumsum(is_text)]) - wanted
    assert deviation.max() - deviation.min() <= 1


def test_the_share_falls_as_the_readme_of_orpheus_asks():
    is_text, text_left, speech_left = mix(10_000, 3_000, FALLING)
    num_rows = len(is_text)
    assert speech_left == 0
    assert text_left == 10_000 - is_text.sum()
    assert is_text.mean() == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-3)
    assert is_text[: num_rows // 20].mean() == pytest.approx(2 / 3, abs=0.01)
    assert is_text[-num_rows // 20 :].mean() == pytest.approx(1 / 2, abs=0.01)


def test_a_step_in_the_schedule_is_a_step_in_the_rows():
    ratio = [(0.0, {"text": 1}), (0.5, {"text": 1}), (0.5, {"speech": 1}), (1.0, {"speech": 1})]
    is_text, *left = mix(50, 50, ratio)
    assert left == [0, 0]
    assert is_text.tolist() == [True] * 50 + [False] * 50


def test_speech_only_leaves_all_text():
    is_text, *left = mix(7, 9, [(0.0, {"speech": 1})])
    assert left == [7, 0]
    assert is_text.tolist() == [False] * 9


def test_millions_of_rows():
    is_text, text_left, speech_left = mix(1_000_000, 1_000_000, FALLING)
    assert text_left == 0
    assert speech_left > 0
    assert len(is_text) == pytest.approx(1_000_000 * 12 / 7, abs=1)
