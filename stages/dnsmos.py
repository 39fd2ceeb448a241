"""DNSMOS P.835 as the reference package computes it, through onnxruntime alone.

Source: `speechmos/dnsmos.py` of speechmos 0.0.1.1, the same code as
microsoft/DNS-Challenge `DNSMOS/dnsmos_local.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from pipeline.errors import BadRecord, ConfigError, StageError

Windows = Literal["reference", "all"]
Provider = Literal["cpu", "cuda"]

SCORER_HZ = 16_000
HOP_SAMPLES = SCORER_HZ
WINDOW_SECONDS = 9.01
WINDOW_SAMPLES = 144_160  # int(WINDOW_SECONDS * SCORER_HZ), the model's fixed input

# Raw output to MOS, highest power first; the reference's values for the general model.
_SIG = (-0.08397278, 1.22083953, 0.0052439)
_BAK = (-0.13166888, 1.60915514, -0.39604546)
_OVRL = (-0.06766283, 1.11546468, 0.04602535)

# Heuristic choice, because an exhaustive search times kernels and may pick another each run;
# no TF32, because scores are promised in FP32.
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
}


@dataclass(frozen=True)
class Scores:
    """Means over the scored windows, on the MOS scale of about 1 to 5."""

    sig: float
    bak: float
    ovrl: float
    windows: int


@dataclass(frozen=True)
class DnsmosModel:
    """A model file and the sha256 (hex) of its bytes."""

    path: str
    sha256: str


def find_model(configured: str | None = None) -> DnsmosModel:
    """Find the DNSMOS model: the configured file, or the one that speechmos ships.

    Raises: ConfigError when there is no such file.
    """
    path = Path(configured) if configured else _packaged_model()
    try:
        with path.open("rb") as file:
            return DnsmosModel(str(path), hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise ConfigError(
            f"the DNSMOS model {path} cannot be read",
            error.strerror or str(error),
            "Correct score.model, or leave it out to use the file of the speechmos package.",
        ) from error


def _packaged_model() -> Path:
    # Located, not imported: importing speechmos pulls in librosa and pandas.
    spec = importlib.util.find_spec("speechmos")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "no DNSMOS model was found",
            "the package speechmos, which ships it, is not installed",
            "Run `pip install --no-deps speechmos==0.0.1.1`, or set score.model to a copy of "
            "sig_bak_ovr.onnx.",
        )
    return Path(spec.submodule_search_locations[0]) / "dnsmos_models" / "sig_bak_ovr.onnx"


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


def repeated_samples(num_samples: int) -> int:
    """Return the length of a clip after doubling it until it fills a window.

    Raises: BadRecord empty_audio for no samples, which the reference doubles for ever.
    """
    if num_samples <= 0:
        raise BadRecord("empty_audio", "the clip has no samples")
    while num_samples < WINDOW_SAMPLES:
        num_samples *= 2
    return num_samples


def window_starts(num_samples: int, windows: Windows) -> list[int]:
    """Return where the windows of a clip start, in samples of the doubled clip at 16 kHz.

    `all` is every whole window at a hop of one second. `reference` leaves out those that the
    reference leaves out: its window ends at `int((i + 9.01) * 16000)`, which rounding makes one
    sample short from the eighth window on, and short windows are skipped.
    Raises: BadRecord empty_audio.
    """
    length = repeated_samples(num_samples)
    if windows == "all":
        return list(range(0, length - WINDOW_SAMPLES + 1, HOP_SAMPLES))
    num_hops = int(np.floor(length / SCORER_HZ) - WINDOW_SECONDS) + 1
    starts = [int(i * HOP_SAMPLES) for i in range(num_hops)]
    stops = [int((i + WINDOW_SECONDS) * HOP_SAMPLES) for i in range(num_hops)]
    return [
        start
        for start, stop in zip(starts, stops, strict=True)
        if min(stop, length) - start >= WINDOW_SAMPLES
    ]


class DnsmosScorer:
    """The model bound to one execution provider. Not picklable: open one per worker."""

    def __init__(
        self,
        model_path: str,
        provider: Provider = "cpu",
        num_threads: int = 1,
        expected_sha256: str | None = None,
    ) -> None:
        """Load the model; `num_threads` windows of a clip are computed at once.

        Raises: ConfigError for a missing file, one of another sha256 or kind, or a missing
        provider.
        """
        self.model = find_model(model_path)
        if expected_sha256 and self.model.sha256 != expected_sha256:
            raise ConfigError(
                f"the DNSMOS model {model_path} is not the one that the run was planned with",
                f"its sha256 is {self.model.sha256}, expected {expected_sha256}",
                "Put the same file on every machine, or start the run again.",
            )
        self.provider: Provider = provider
        self._session = _open_session(self.model.path, provider)
        self._input = self._session.get_inputs()[0].name
        pool = ThreadPoolExecutor(num_threads, "dnsmos") if num_threads > 1 else None
        self._map = pool.map if pool else map

    def score(self, audio_16k: np.ndarray, windows: Windows, clip_id: str = "") -> Scores:
        """Score one clip: float32 [samples], mono, 16 kHz.

        Raises: BadRecord empty_audio; StageError naming `clip_id` when the model fails or gives
        a score that is not finite.
        """
        starts = window_starts(len(audio_16k), windows)
        num_copies = repeated_samples(len(audio_16k)) // len(audio_16k)
        audio = np.tile(audio_16k.astype(np.float32, copy=False), num_copies)
        cut = [audio[start : start + WINDOW_SAMPLES] for start in starts]
        raw = np.stack(list(self._map(self._raw, cut, repeat(clip_id))))
        # The reference's quadratics and means are FP64 too, whatever the model's output is.
        columns = zip((_SIG, _BAK, _OVRL), raw.astype(np.float64).T, strict=True)
        sig, bak, ovrl = (float(np.mean(np.polyval(poly, values))) for poly, values in columns)
        if not np.isfinite([sig, bak, ovrl]).all():
            raise StageError(
                f"DNSMOS gave the scores sig={sig} bak={bak} ovrl={ovrl} for clip {clip_id!r}",
                "the model failed, as decoded audio is finite",
                "Check the model file and the execution provider; the unit can be resumed.",
                stage="score",
                clip_id=clip_id,
            )
        return Scores(sig, bak, ovrl, len(starts))

    def _raw(self, window: np.ndarray, clip_id: str) -> np.ndarray:
        """Run the model on one window: float32 [144160] to float32 [3] (sig, bak, ovrl)."""
        try:
            # One at a time: a batch is no faster on a CPU and a window's activations take 74 MB.
            (output,) = self._session.run(None, {self._input: window[np.newaxis]})
        except Exception as error:  # onnxruntime's errors share no narrower base class
            raise StageError(
                f"onnxruntime failed on clip {clip_id!r}",
                str(error).strip(),
                "Check memory and the execution provider; the unit can be resumed.",
                stage="score",
                clip_id=clip_id,
            ) from error
        return np.asarray(output)[0]


def _open_session(model_path: str, provider: Provider) -> ort.InferenceSession:
    require_provider(provider)
    options = ort.SessionOptions()
    # One thread a window: with more, onnxruntime splits its sums by the number of threads, and a
    # score's last bits would depend on the size of the worker.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    name, settings = _PROVIDERS[provider]
    try:
        session = ort.InferenceSession(model_path, options, providers=[(name, settings)])
    except Exception as error:  # onnxruntime's errors share no narrower base class
        raise ConfigError(
            f"onnxruntime cannot load {model_path} with the provider {provider}",
            str(error).strip(),
            "Leave score.model out to use the file of the speechmos package.",
        ) from error
    session.disable_fallback()  # otherwise a failing run is repeated on the CPU
    if session.get_providers()[0] != name:
        raise ConfigError(
            f"score.provider {provider} cannot be used",
            f"onnxruntime fell back to {', '.join(session.get_providers())}",
            "Check the CUDA libraries that onnxruntime-gpu needs, or set score.provider: cpu.",
        )
    _require_shapes(session, model_path)
    return session


def _require_shapes(session: ort.InferenceSession, model_path: str) -> None:
    takes = [item.shape[1:] for item in session.get_inputs()]
    gives = [item.shape[1:] for item in session.get_outputs()]
    if takes != [[WINDOW_SAMPLES]] or gives != [[3]]:
        raise ConfigError(
            f"{model_path} is not a DNSMOS P.835 model",
            f"it maps {takes} to {gives}, expected [[{WINDOW_SAMPLES}]] to [[3]]",
            "Use sig_bak_ovr.onnx, or leave score.model out.",
        )
