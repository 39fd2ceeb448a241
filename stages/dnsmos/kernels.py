"""The DNSMOS network compiled, with the same bits on every instruction set.

The convolutions that windows share run by Winograd's F(4x4, 3x3): a quarter of the products, and no
activation leaves the cache before it is used. In FP32 the features differ from onnxruntime's by 5e-6
of the largest, the scores by some 1e-6. In BF16, which halves the products again, what is multiplied is
rounded, 36 points of a patch and of a kernel; everything else stays FP32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stages.native.build import Unavailable
from stages.native.compiler import Library, bf16_target, load_library, load_target
from stages.native.products import panels
from stages.settings import Precision

SOURCE = Path(__file__).with_suffix(".c")
BF16_SOURCE = SOURCE.with_name("kernels_bf16.c")
SPECTROGRAM_SOURCE = SOURCE.with_name("spectrogram.c")
_BINS, _FRAME_SAMPLES = 161, 320
# Kernel and bias of each layer that the C expects.
_SHARED = [(128, 1, 3, 3), (64, 128, 3, 3), (64, 64, 3, 3), (32, 64, 3, 3)] + 2 * [(32, 32, 3, 3)]
_HEAD = [(64, 32, 3, 3), (64, 128), (128, 64), (64, 3)]
# The points between 0 and infinity, and the same below 0, at which winograd.h multiplies.
_NEAR_AND_FAR: dict[Precision, tuple[float, float]] = {"fp32": (1, 2), "bf16": (0.75, 1.5)}

Weights = Sequence[tuple[np.ndarray, np.ndarray]]


class NativeSpectrogram:
    """Frames [1, frames, 320] to log power [1, 1, frames, 161]."""

    def __init__(self, filters: np.ndarray, library: Library | None = None) -> None:
        """Take the filters of `network.Parts`. Raises: Unavailable without a C compiler."""
        if filters.shape != (2, _BINS, _FRAME_SAMPLES):
            raise Unavailable("the model's filters are not those of the compiled code")
        self._library = library or load_library(SPECTROGRAM_SOURCE)
        basis = filters.reshape(-1, _FRAME_SAMPLES).T.copy()
        self._panels = panels(torch.from_numpy(basis))

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        rows = frames.shape[1]
        frames = np.ascontiguousarray(frames, np.float32)
        outputs = self._panels.shape[0] * self._panels.shape[2]
        products = np.empty((rows, outputs), np.float32)
        power = np.empty((1, 1, rows, _BINS), np.float32)
        sizes = (rows, _FRAME_SAMPLES, outputs, _BINS)
        self._library.log_power(frames, self._panels, products, power, *sizes)
        return power


class NativeShared:
    """The shared convolutions: log power [n, 1, frames, 161] to [n, 32, frames // 4, 40]."""

    def __init__(
        self, weights: Weights, precision: Precision = "fp32", library: Library | None = None
    ) -> None:
        """Take kernel and bias of each convolution, as `network.Parts` has them.

        Raises: Unavailable without a C compiler, or for BF16 on a CPU without AVX-512 BF16.
        """
        _check(weights, _SHARED)
        self._library = library or load_shared(precision)
        self._prefix = "bf16_" if precision == "bf16" else ""
        self._first = _first(*weights[0])
        self._points = [_transformed(kernel, precision) for kernel, _ in weights[1:]]
        self._biases = [np.ascontiguousarray(bias, np.float32) for _, bias in weights[1:]]

    def __call__(self, power: np.ndarray) -> np.ndarray:
        num, _, rows, columns = power.shape
        power = np.ascontiguousarray(power, np.float32)
        features = np.empty((num, 32, rows // 4, columns // 4), np.float32)
        num_floats = getattr(self._library, f"{self._prefix}shared_floats")
        run = getattr(self._library, f"{self._prefix}shared_layers")
        workspace = np.empty(num_floats(rows, columns), np.float32)
        for image, out in zip(power, features, strict=True):
            layers = (self._first, self._points, self._biases)
            run(image, rows, columns, *layers, workspace, out)
        return features


def load_shared(precision: Precision) -> Library:
    """Load what `NativeShared` runs. Raises: Unavailable, as it does."""
    if precision == "bf16":
        return load_target(BF16_SOURCE, bf16_target())
    return load_library(SOURCE)


class NativeHead:
    """What follows in each window: features [n, 32, 225, 40] to raw scores [n, 3]."""

    def __init__(self, weights: Weights, library: Library | None = None) -> None:
        """Take `head_weights` of `network.Parts`. Raises: Unavailable without a C compiler."""
        _check(weights, _HEAD)
        self._library = library or load_library(SOURCE)
        (kernel, _), *dense = weights
        matrices = [np.ascontiguousarray(matrix, np.float32) for matrix, _ in dense]
        self._weights = [_transformed(kernel, "fp32"), *matrices]
        self._biases = [np.ascontiguousarray(bias, np.float32) for _, bias in weights]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        rows, columns = features.shape[2:]
        features = np.ascontiguousarray(features, np.float32)
        scores = np.empty((len(features), 3), np.float32)
        workspace = np.empty(self._library.head_floats(rows, columns), np.float32)
        for window, out in zip(features, scores, strict=True):
            layers = (self._weights, self._biases)
            self._library.window_head(window, rows, columns, *layers, workspace, out)
        return scores


def _check(weights: Weights, expected: list[tuple[int, ...]]) -> None:
    if [kernel.shape for kernel, _ in weights] != expected:
        raise Unavailable("the model's layers are not those of the compiled code")


def _first(kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Stack the nine taps of the first layer and its bias: float32 [10, 128]."""
    taps = kernel[:, 0].reshape(len(kernel), 9).T
    return np.ascontiguousarray(np.concatenate([taps, bias[np.newaxis]]), np.float32)


def _transformed(kernel: np.ndarray, precision: Precision) -> np.ndarray:
    """Transform kernels [outputs, inputs, 3, 3] in FP64, and lay them out as winograd.h takes them.

    Returns float32 [36, inputs, outputs]; for bf16 its bits, uint16 [36, inputs / 2, outputs, 2].
    """
    outputs, inputs = kernel.shape[:2]
    table = _points_table(*_NEAR_AND_FAR[precision])
    rows = _at_points(table, kernel.astype(np.float64).transpose(2, 3, 1, 0))
    points = _at_points(table, rows.transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3)
    if precision == "fp32":
        return np.ascontiguousarray(points.reshape(36, inputs, outputs), np.float32)
    rounded = torch.from_numpy(points.reshape(36, inputs // 2, 2, outputs)).to(torch.bfloat16)
    return rounded.transpose(2, 3).contiguous().view(torch.uint16).numpy()


def _points_table(near: float, far: float) -> np.ndarray:
    """Return what a kernel's three values contribute at 0, two pairs of points and infinity."""
    rows = [[1 / (near * far) ** 2, 0, 0]]
    for point, other in ((near, far), (far, near)):
        scale = 2 * point**2 * (point**2 - other**2)
        rows += [[1 / scale, sign * point / scale, point**2 / scale] for sign in (1, -1)]
    return np.array([*rows, [0, 0, 1]])


def _at_points(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Map the three values of the first axis to six, summed in one order on every CPU."""
    return np.stack([(a * values[0] + b * values[1]) + c * values[2] for a, b, c in table])
