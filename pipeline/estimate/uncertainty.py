"""How far a total that was estimated from a sample may be from the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# 97.5 % points of Student's t distribution by degrees of freedom; between them the inverse of the
# degrees is interpolated, which is right to half a percent.
_DEGREES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 15, 30, math.inf)
_POINTS = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.228, 2.131, 2.042, 1.960)
# Records that are imagined beside those drawn, half of them kept and half of them not (Agresti and
# Coull, American Statistician 52, 1998): that a few records were all kept does not mean that all
# others will be.
_IMAGINED_KEPT = _IMAGINED_LEFT_OUT = 2


@dataclass(frozen=True)
class Uncertainty:
    """The variance of a total, relative to the total's square, and its degrees of freedom.

    `variance` is nan where it is not known. The sum of two is the uncertainty of a product of
    independent factors; its degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946).
    """

    variance: float
    degrees: float = math.inf

    def __add__(self, other: Uncertainty) -> Uncertainty:
        variance = self.variance + other.variance
        doubt = self.variance**2 / self.degrees + other.variance**2 / other.degrees
        return Uncertainty(variance, variance**2 / doubt if doubt else math.inf)

    def weighed(self, weight: float) -> Uncertainty:
        """Return the uncertainty of a part that is `weight` of a sum, relative to that sum."""
        return Uncertainty(self.variance * weight**2, self.degrees)

    def half_width(self) -> float | None:
        """Return half the width of a 95 % interval, as a share of the total; None if not known."""
        if math.isnan(self.variance):
            return None
        inverses = [1 / degrees for degrees in _DEGREES]
        point = np.interp(1 / self.degrees, inverses[::-1], _POINTS[::-1])
        return math.expm1(float(point) * math.sqrt(self.variance))


CERTAIN = Uncertainty(0.0)
UNKNOWN = Uncertainty(math.nan)


def of_sum(deviations: np.ndarray, total: float, share: float) -> Uncertainty:
    """Return how uncertain the total of a random sample is, as an estimate of that of all.

    The sum of the `deviations`, one per record or unit drawn, is what the sample's `total` would
    differ by from sample to sample. `share` of all were drawn: where all were, the total is certain.
    """
    if share >= 1 - 1e-9:
        return CERTAIN
    if len(deviations) < 2 or not total:
        return UNKNOWN
    number, variance = len(deviations), float(deviations.var(ddof=1))
    if not variance:
        return Uncertainty(0.0, number - 1)
    # A variance that depends on a few outliers is itself uncertain; the kurtosis tells how much.
    kurtosis = float(((deviations - deviations.mean()) ** 4).mean()) / variance**2
    degrees = 2 * number / max(kurtosis - 1, 1.0)
    return Uncertainty(number * variance * (1 - share) / total**2, min(degrees, number - 1))


def of_ratio(work: np.ndarray, sizes: np.ndarray, share: float) -> Uncertainty:
    """Return how uncertain a total of `work` is that is scaled up in proportion to `sizes`.

    The sizes of all records or units are known; those of size 0 are left out.
    """
    work, sizes = work[sizes > 0], sizes[sizes > 0]
    total = float(work.sum())
    return of_sum(work - total / max(float(sizes.sum()), 1e-9) * sizes, total, share)


def with_imagined(values: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add imagined records, some with the mean of the `values` above 0 and some with 0.

    Their sizes are the mean; records of size 0 are dropped. Returns values and sizes.
    """
    values, sizes = values[sizes > 0], sizes[sizes > 0]
    if not (values > 0).any():
        return values, sizes
    imagined = [float(values[values > 0].mean())] * _IMAGINED_KEPT + [0.0] * _IMAGINED_LEFT_OUT
    return (
        np.concatenate([values, imagined]),
        np.concatenate([sizes, [float(sizes.mean())] * len(imagined)]),
    )


def of_records(work: np.ndarray, sizes: np.ndarray, share: float) -> Uncertainty:
    """Return what `of_ratio` does for records of which some are left out, with a work of 0."""
    rates = np.divide(work, sizes, out=np.zeros(len(work)), where=sizes > 0)
    rates, sizes = with_imagined(rates, sizes)
    mean = float((rates * sizes).sum()) / max(float(sizes.sum()), 1e-9)
    return of_sum(sizes * (rates - mean), float(work.sum()), share)
