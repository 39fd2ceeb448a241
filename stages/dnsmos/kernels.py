"""The convolutions of DNSMOS that windows share, compiled: FP32 by Winograd's F(4x4, 3x3).

This needs a quarter of the products, and no activation leaves the cache before it is used: 0.12 s
per window on one Zen 4 core, against 0.35 in onnxruntime and 0.21 in torch with BF16. The features
differ from onnxruntime's by 5e-6 of the largest, the scores by some 1e-6.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.native.compiler import Unavailable, load_library

SOURCE = Path(__file__).with_suffix(".c")
_Floats = ctypes.POINTER(ctypes.c_float)
# Kernel and bias of each layer that the C expects.
_SHAPES = [(128, 1, 3, 3), (64, 128, 3, 3), (64, 64, 3, 3), (32, 64, 3, 3)] + 2 * [(32, 32, 3, 3)]
# A kernel's values at Winograd's points 0, 1, -1, 2, -2 and infinity, scaled.
_POINTS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24


class NativeShared:
    """The shared convolutions: log power [n, 1, frames, 161] to [n, 32, frames // 4, 40]."""

    def __init__(self, weights: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Take kernel and bias of each convolution, as `network.Parts` has them.

        Raises: Unavailable without a C compiler.
        """
        if [kernel.shape for kernel, _ in weights] != _SHAPES:
            raise Unavailable("the model's convolutions are not those of the compiled code")
        library = load_library(SOURCE)
        length, many = ctypes.c_ssize_t, ctypes.POINTER(_Floats)
        self._run, self._size = library.shared_layers, library.workspace_floats
        self._run.argtypes = [_Floats, length, length, _Floats, many, many, _Floats, _Floats]
        self._run.restype = None
        self._size.argtypes, self._size.restype = [length, length], length
        self._first = _first(*weights[0])
        # The C code is given the addresses of these arrays, so they are kept.
        self._points = [_transformed(kernel) for kernel, _ in weights[1:]]
        self._biases = [np.ascontiguousarray(bias, np.float32) for _, bias in weights[1:]]

    def __call__(self, power: np.ndarray) -> np.ndarray:
        num, _, rows, columns = power.shape
        power = np.ascontiguousarray(power, np.float32)
        features = np.empty((num, 32, rows // 4, columns // 4), np.float32)
        workspace = np.empty(self._size(rows, columns), np.float32)
        layers = [_addresses(self._points), _addresses(self._biases)]
        for image, out in zip(power, features, strict=True):
            pointers = (_address(self._first), *layers, _address(workspace), _address(out))
            self._run(_address(image), rows, columns, *pointers)
        return features


def _addresses(arrays: Sequence[np.ndarray]) -> Any:
    return (_Floats * len(arrays))(*map(_address, arrays))


def _address(array: np.ndarray) -> Any:
    return array.ctypes.data_as(_Floats)


def _first(kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Stack the nine taps of the first layer and its bias: float32 [10, 128]."""
    taps = kernel[:, 0].reshape(len(kernel), 9).T
    return np.ascontiguousarray(np.concatenate([taps, bias[np.newaxis]]), np.float32)


def _transformed(kernel: np.ndarray) -> np.ndarray:
    """Transform kernels [outputs, inputs, 3, 3] in FP64 to float32 [36, inputs, outputs]."""
    outputs, inputs = kernel.shape[:2]
    points = np.einsum("ia,ocab,jb->ijco", _POINTS, kernel.astype(np.float64), _POINTS)
    return np.ascontiguousarray(points.reshape(36, inputs, outputs), np.float32)
