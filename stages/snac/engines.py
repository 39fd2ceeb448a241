"""The ways to run SNAC's encoder, and which of them a worker takes.

| engine | runs on | what | audio-seconds a second, one Zen 4 core |
|---|---|---|---|
| native | CPU | `snac_encoder` on compiled C; needs a C compiler | 16 |
| tiled | CPU | `snac_encoder` on torch's operations | 9 to 10 |
| eager | CPU, CUDA | the package's modules, their weight norm removed | 6 |

On CUDA eager runs clips of several lengths at once (`snac_masking`): 1,022 audio-seconds a second of
an H200 in batches of 60 s.

`auto` is native, or tiled without a compiler, on a CPU, and eager on CUDA: a rule and no measurement
at the start, which noise would decide differently in two workers. Engines sum in another order, by
which a code could flip where two distances are equal to some 1e-6. None of 12,761 did (113 clips,
2.5 minutes of real and synthetic audio, native and tiled, weights with 3,373 different codes).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

from snac import SNAC
from torch import Tensor

from koe.errors import ConfigError, StageError
from koe.vocabulary import FRAME_SAMPLES
from stages.native.repeatable import deterministic_inference
from stages.settings import CodecEngine, Device
from stages.snac.encoder import TiledEncoder, supports
from stages.snac.kernels import Kernels, TorchKernels, Unavailable, native_kernels
from stages.snac.masking import MaskedEncoder

# Clips padded to one length, [clips, samples], and the whole frames that each has, to the codes of
# each in three codebooks, int64 on any device.
Encode = Callable[[Tensor, Sequence[int]], list[list[Tensor]]]

_LOG = logging.getLogger(__name__)


def open_engine(model: SNAC, engine: CodecEngine, device: Device) -> tuple[CodecEngine, Encode]:
    """Choose the engine of `model`, whose weight norm is removed and which is on `device`.

    Returns its name and the encoder, which gives a clip the same codes in any batch.
    Raises: ConfigError for a named engine that does not run here.
    """
    if engine not in get_args(CodecEngine):
        raise _refused(engine, "there is no such engine")
    if device == "cpu" and engine in ("auto", "native", "tiled"):
        try:
            return _open_tiled(model, engine)
        except Unavailable as error:
            if engine != "auto":
                raise _refused(engine, str(error)) from error
    if engine in ("native", "tiled"):
        raise _refused(engine, f"it runs on a CPU and snac.device is {device}")
    return "eager", _of_modules(model, device)


def _open_tiled(model: SNAC, engine: CodecEngine) -> tuple[CodecEngine, Encode]:
    if not supports(model):
        raise Unavailable("the encoder of these weights is not built as the published one is")
    kernels: Kernels = TorchKernels()
    chosen: CodecEngine = "tiled"
    if engine != "tiled":
        try:
            kernels, chosen = native_kernels(), "native"
        except Unavailable as error:
            if engine == "native":
                raise
            _LOG.warning("SNAC encodes at some 0.6 of its speed without compiled code: %s", error)
    encoder = TiledEncoder(model, kernels)

    def encode(audio: Tensor, frames: Sequence[int]) -> list[list[Tensor]]:
        pairs = zip(audio, frames, strict=True)
        return [list(encoder.encode(clip[: FRAME_SAMPLES * n])) for clip, n in pairs]

    return chosen, encode


def _of_modules(model: SNAC, device: Device) -> Encode:
    encoder = MaskedEncoder(model.encoder)

    def encode(audio: Tensor, frames: Sequence[int]) -> list[list[Tensor]]:
        latents = encoder(audio.to(device).unsqueeze(1), frames)
        books = [book.cpu() for book in model.quantizer(latents)[1]]
        sizes = [book.shape[1] // max(frames) for book in books]  # codes a frame
        return [
            [book[clip, : size * n] for book, size in zip(books, sizes, strict=True)]
            for clip, n in enumerate(frames)
        ]

    return encode


def _refused(engine: str, why: str) -> ConfigError:
    return ConfigError(
        f"snac.engine {engine} cannot be used",
        why,
        "Set snac.engine: auto, which takes what runs here (with a C compiler, as in Debian's "
        "package gcc, the fastest).",
    )


@contextmanager
def guarded(doing: str, clip_id: str) -> Iterator[None]:
    """Run the model without gradients, repeatably, and name the clip if torch fails."""
    try:
        with deterministic_inference():
            yield
    except RuntimeError as error:  # torch's out-of-memory errors are RuntimeErrors too
        raise StageError(
            f"SNAC could not {doing} of clip {clip_id!r}",
            str(error).strip(),
            "If memory ran out, lower encode.batch_seconds or ingest.max_seconds, or give the "
            "stage fewer workers; the unit can be resumed.",
            clip_id=clip_id,
        ) from error
