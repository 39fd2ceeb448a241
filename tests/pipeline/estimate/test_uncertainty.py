"""The arithmetic of what a sample tells."""

import math

import numpy as np
import pytest

from pipeline.estimate.uncertainty import CERTAIN, UNKNOWN, Uncertainty, of_ratio, of_records


@pytest.mark.parametrize(
    ("degrees", "point"),
    [(1, 12.706), (4, 2.776), (9, 2.262), (12, 2.179), (20, 2.086), (60, 2.000), (math.inf, 1.960)],
)
def test_few_degrees_of_freedom_widen_the_interval_as_student_says(degrees, point):
    width = Uncertainty(1e-8, degrees).half_width()
    assert width == pytest.approx(point * 1e-4, rel=0.006)


def test_uncertainties_add_up_and_what_is_not_known_stays_so():
    both = Uncertainty(0.03, 4) + Uncertainty(0.01, 9)
    assert both.variance == pytest.approx(0.04)
    assert 4 < both.degrees < 13
    assert (both + CERTAIN).degrees == pytest.approx(both.degrees)
    assert (both + UNKNOWN).half_width() is None
    assert CERTAIN.half_width() == 0
    assert both.weighed(0.5).variance == pytest.approx(0.01)


def test_work_in_proportion_to_size_is_certain_and_records_left_out_are_not():
    sizes = np.array([1.0, 2.0, 3.0, 4.0] * 3)
    assert of_ratio(3 * sizes, sizes, 0.5).half_width() == 0
    none_left_out = of_records(3 * sizes, sizes, 0.5).half_width()
    assert none_left_out is not None
    assert none_left_out > 0.1, "of twelve records that were all kept nobody knows that all are"
    more = of_records(np.tile(3 * sizes, 9), np.tile(sizes, 9), 0.5).half_width()
    assert more is not None
    assert more < none_left_out / 4
    assert of_records(3 * sizes, sizes, 1.0) == CERTAIN
    assert of_ratio(sizes[:1], sizes[:1], 0.5).half_width() is None
    assert of_ratio(0 * sizes, sizes, 0.5).half_width() is None
