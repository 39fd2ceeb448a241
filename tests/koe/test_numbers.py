"""Numbers as people read them."""

import math

import pytest

from koe.numbers import (
    UNKNOWN,
    audio_hours,
    clock_time,
    count,
    decimal,
    duration,
    file_size,
    short,
    significant,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12.34, "12.3"), (9999, "9,999"), (9999.6, "10.0k"), (99_960, "100k"),
     (999_999, "1.00M"), (15_000_000, "15.0M"), (2.5e9, "2.50G"), (99.96, "100"),
     (math.nan, UNKNOWN), (math.inf, UNKNOWN)],
)  # fmt: skip
def test_short_numbers_take_five_characters(value, text):
    assert short(value) == text
    assert len(text) <= 5


def test_short_numbers_take_the_digits_that_are_asked_for():
    assert short(123_456, 4) == "123.5k"
    assert short(999_999, 6) == "999.999k"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (725, "12m05s"), (26_400, "7h20m"), (273_600, "3d04h")],
)
def test_clock_times_take_six_characters(seconds, text):
    assert clock_time(seconds) == text
    assert len(text) <= 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""), (0, "0 s"), (0.036, "< 0.1 s"), (0.4, "0.4 s"), (32, "32 s"),
        (59.6, "1.0 min"), (246, "4.1 min"), (3599.6, "1.0 h"), (9000, "2.5 h"),
        (1740 * 3600, "1,740 h"),
    ],
)  # fmt: skip
def test_a_duration_has_the_unit_that_suits_it(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, ""), (12, "0.0 kB"), (200_000, "200.0 kB"), (1.9e6, "1.9 MB"), (2.25e12, "2.2 TB")],
)
def test_a_file_size_has_the_unit_that_suits_it(num_bytes, text):
    assert file_size(num_bytes) == text


def test_what_is_not_known_is_a_dash():
    assert count(None) == decimal(math.nan, 2) == UNKNOWN
    assert (count(12345), decimal(1234.5, 2, " %")) == ("12,345", "1,234.50 %")


def test_numbers_of_other_sizes():
    assert [audio_hours(value) for value in (0.125, 999.5, 1234.5)] == ["0.125", "999.500", "1,234"]
    assert [significant(value) for value in (0.01234, 12.34, 1234.5)] == ["0.0123", "12.3", "1,234"]
