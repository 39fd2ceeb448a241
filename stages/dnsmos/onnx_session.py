"""onnxruntime sessions on the execution provider that was asked for, never on another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from koe.errors import ConfigError
from stages.settings import Provider

Run = Callable[[np.ndarray], np.ndarray]

# Heuristic choice, because an exhaustive search times kernels and may pick another each run;
# no TF32, because scores are promised in FP32.
_PROVIDERS: dict[Provider, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
}


def require_provider(provider: Provider) -> None:
    """Check that this onnxruntime has the execution provider.

    Raises: ConfigError, as onnxruntime itself would go on with the CPU after a warning.
    """
    name, _ = _PROVIDERS[provider]
    available = ort.get_available_providers()
    if name not in available:
        raise ConfigError(
            f"score.provider {provider} cannot be used",
            f"this onnxruntime {ort.__version__} offers only {', '.join(available)}",
            "Install onnxruntime-gpu in place of onnxruntime, or set score.provider: cpu.",
        )


def open_session(model: bytes, provider: Provider, name: str) -> ort.InferenceSession:
    """Load a serialised ONNX model of one input and one output; `name` is for errors.

    Raises: ConfigError when the model or the provider cannot be used.
    """
    require_provider(provider)
    options = ort.SessionOptions()
    # One thread: with more, onnxruntime splits its sums by the number of threads, and a score's
    # last bits would depend on the size of the worker.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    wanted, settings = _PROVIDERS[provider]
    try:
        session = ort.InferenceSession(model, options, providers=[(wanted, settings)])
    except Exception as error:  # onnxruntime's errors share no narrower base class
        raise ConfigError(
            f"onnxruntime cannot load {name} with the provider {provider}",
            str(error).strip(),
            "Leave score.model out to use the file of the speechmos package.",
        ) from error
    session.disable_fallback()  # otherwise a failing run is repeated on the CPU
    if session.get_providers()[0] != wanted:
        raise ConfigError(
            f"score.provider {provider} cannot be used",
            f"onnxruntime fell back to {', '.join(session.get_providers())}",
            "Check the GPU libraries that onnxruntime-gpu needs, or set score.provider: cpu.",
        )
    return session


def runner(session: ort.InferenceSession) -> Run:
    """Return the session as a function of its one input."""
    name = session.get_inputs()[0].name

    def run(values: np.ndarray) -> np.ndarray:
        (result,) = session.run(None, {name: values})
        return np.asarray(result)

    return run


def shapes(session: ort.InferenceSession) -> tuple[list[Any], list[Any]]:
    """Return the shapes of the model's inputs and outputs, without the batch."""
    takes = [item.shape[1:] for item in session.get_inputs()]
    gives = [item.shape[1:] for item in session.get_outputs()]
    return takes, gives
