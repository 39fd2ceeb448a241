"""DNSMOS P.835: the reference package's windows and scores; `engines.py` runs the network.

Source: `speechmos/dnsmos.py` of speechmos 0.0.1.1, the same code as
microsoft/DNS-Challenge `DNSMOS/dnsmos_local.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from koe.errors import BadRecord, ConfigError, StageError
from koe.memory import keep_memory
from stages.dnsmos.engines import open_network
from stages.dnsmos.network import HOP_SAMPLES, WINDOW_SAMPLES, Clip, computing
from stages.dnsmos.onnx_session import open_session, runner
from stages.dnsmos.p808 import P808
from stages.settings import Precision, Provider, Windows

K = TypeVar("K")

SCORER_HZ = 16_000
P835_FILE, P808_FILE = "sig_bak_ovr.onnx", "model_v8.onnx"
WINDOW_SECONDS = 9.01  # of which int(WINDOW_SECONDS * SCORER_HZ) are the model's fixed input

# Raw output to MOS, highest power first; the reference's values for the general model.
_SIG = (-0.08397278, 1.22083953, 0.0052439)
_BAK = (-0.13166888, 1.60915514, -0.39604546)
_OVRL = (-0.06766283, 1.11546468, 0.04602535)


@dataclass(frozen=True)
class Scores:
    """Means over the scored windows, on the MOS scale of about 1 to 5."""

    sig: float
    bak: float
    ovrl: float
    windows: int
    p808: float | None = None


@dataclass(frozen=True)
class DnsmosModel:
    """A model file and the sha256 (hex) of its bytes."""

    path: str
    sha256: str


def find_model(configured: str | None = None, packaged: str = P835_FILE) -> DnsmosModel:
    """Find a DNSMOS model: the configured file, or `packaged`, one of those of speechmos.

    Raises: ConfigError when there is no such file.
    """
    path = Path(configured) if configured else _packaged_model(packaged)
    try:
        with path.open("rb") as file:
            return DnsmosModel(str(path), hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise ConfigError(
            f"the DNSMOS model {path} cannot be read",
            error.strerror or str(error),
            "Correct score.model, or leave it out to use the file of the speechmos package.",
        ) from error


def _packaged_model(name: str) -> Path:
    # Located, not imported: importing speechmos pulls in librosa and pandas.
    spec = importlib.util.find_spec("speechmos")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "no DNSMOS model was found",
            "the package speechmos, which ships it, is not installed",
            "Run `pip install --no-deps speechmos==0.0.1.1`, or set score.model to a copy of "
            f"{P835_FILE}.",
        )
    return Path(spec.submodule_search_locations[0]) / "dnsmos_models" / name


def repeated_samples(num_samples: int) -> int:
    """Return the length of a clip after doubling it until it fills a window.

    Raises: BadRecord empty_audio for no samples, on which the reference never ends.
    """
    if num_samples <= 0:
        raise BadRecord("empty_audio", "the clip has no samples")
    while num_samples < WINDOW_SAMPLES:
        num_samples *= 2
    return num_samples


def window_starts(num_samples: int, windows: Windows) -> list[int]:
    """Return where the windows of a clip start, in samples of the doubled clip at 16 kHz.

    `all` is every complete window at a hop of one second. `reference` leaves out those that the
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
    """The model bound to one provider and engine. Not picklable: open one per worker."""

    def __init__(
        self,
        model_path: str,
        provider: Provider = "cpu",
        num_threads: int = 1,
        expected_sha256: str | None = None,
        precision: Precision = "fp32",
        p808: DnsmosModel | None = None,
        engine: str = "auto",
        gpu_share: float = 1.0,
    ) -> None:
        """Load the models; on a CPU `num_threads` segments of a clip are computed in parallel.

        `precision` and `engine` are those of the convolutions (see `engines.py`). `p808`
        adds the P.808 score. On a GPU, `gpu_share` of its memory bounds the batches.
        Raises: ConfigError for a missing file, one of another sha256 or kind, or a missing
        provider or instruction set.
        """
        keep_memory()
        model = _expect(find_model(model_path), expected_sha256)
        pool = ThreadPoolExecutor(num_threads, "dnsmos") if num_threads > 1 else None
        self._network = open_network(
            model.path, provider, precision, engine, pool.map if pool else map, gpu_share
        )
        self._p808 = _open_p808(p808, provider) if p808 else None

    def score(self, audio_16k: np.ndarray, windows: Windows, clip_id: str = "") -> Scores:
        """Score one clip: float32 [samples], mono, 16 kHz.

        Raises: BadRecord empty_audio; StageError naming `clip_id` when the model fails or gives
        a score that is not finite.
        """
        ((_, scores),) = self.score_each([(None, clip_id, audio_16k)], windows)
        return scores

    def score_each(
        self, clips: Iterable[tuple[K, str, np.ndarray]], windows: Windows
    ) -> Iterator[tuple[K, Scores]]:
        """Score clips, each a key, an id for errors, and float32 [samples], mono, 16 kHz.

        Yields key and scores of each as it is done: on a GPU, which computes many clips at once,
        later than others and in another order.
        Raises: as `score`.
        """
        found = self._network.raw_scores_of(
            Clip(key, clip_id, audio.astype(np.float32, copy=False), starts)
            for key, clip_id, audio in clips
            for starts in [window_starts(len(audio), windows)]
        )
        for clip, raw in found:
            yield clip.key, _finite(mean_scores(raw, self._p808_of(clip)), clip.name)

    def _p808_of(self, clip: Clip) -> float | None:
        if self._p808 is None:
            return None
        with computing([clip]):
            return self._p808.score(clip.repeated(), clip.starts)


def mean_scores(raw: np.ndarray, p808: float | None) -> Scores:
    """Turn raw outputs [windows, 3] into the means of their MOS."""
    # The reference's quadratics and means are FP64 too, whatever the model's output is. `fsum` rounds
    # once, where numpy sums in the order of its build.
    columns = zip((_SIG, _BAK, _OVRL), raw.astype(np.float64).T, strict=True)
    sums = (math.fsum(np.polyval(poly, values)) for poly, values in columns)
    sig, bak, ovrl = (total / len(raw) for total in sums)
    return Scores(sig, bak, ovrl, len(raw), p808)


def _finite(scores: Scores, clip_id: str) -> Scores:
    if np.isfinite([scores.sig, scores.bak, scores.ovrl, scores.p808 or 0.0]).all():
        return scores
    raise StageError(
        f"DNSMOS gave {scores} for clip {clip_id!r}",
        "the model failed, as decoded audio is finite",
        "Check the model file and the execution provider; the unit can be resumed.",
        stage="score",
        clip_id=clip_id,
    )


def _expect(model: DnsmosModel, sha256: str | None) -> DnsmosModel:
    if sha256 and model.sha256 != sha256:
        raise ConfigError(
            f"the DNSMOS model {model.path} is not the one that the run was planned with",
            f"its sha256 is {model.sha256}, expected {sha256}",
            "Put the same file on every machine, or start the run again.",
        )
    return model


def _open_p808(model: DnsmosModel, provider: Provider) -> P808:
    _expect(find_model(model.path), model.sha256)
    return P808(runner(open_session(Path(model.path).read_bytes(), provider, model.path)))
