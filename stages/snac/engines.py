"""The engines that run SNAC's encoder, and which of them a run uses.

| engine | runs on | what | audio-seconds/s, one Zen 4 core |
|---|---|---|---|
| native | CPU | `encoder.py` on compiled C; needs a C compiler | 16 |
| tiled | CPU | `encoder.py` on torch's operations | 9 to 10 |
| eager | CPU, CUDA | the package's modules, their weight norm removed | 6 |

On CUDA, eager runs clips of several lengths at once (`masking.py`), on an H200 with 1,022
audio-seconds/s in batches of 60 s.

`auto` is native on a CPU, tiled where there is no compiler, and eager on CUDA: a rule, because a
measurement at the start would be decided by noise. Tiled is faster than eager where there is no
compiler, and its memory does not grow with the clip.

Engines differ in the order in which they sum, and so do instruction sets, so where two entries are
nearly as close, one may choose the other. On the untrained weights that is rare: 0 of 4,396 codes
(`benchmarks/codec_distance.py`); weights that amplify rounding have more. So the engine is chosen
once, where the run starts, under a name that says both, `native-avx512`; it is part of receipts and
of the shards' metadata, and a worker that cannot run just that one refuses.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

from snac import SNAC
from torch import Tensor

from koe.errors import ConfigError, StageError
from koe.vocabulary import FRAME_SAMPLES
from stages.native.compiler import instruction_set
from stages.native.repeatable import deterministic_inference
from stages.settings import CodecEngine, Device
from stages.snac.encoder import TiledEncoder
from stages.snac.kernels import Kernels, TorchKernels, Unavailable, native_kernels
from stages.snac.masking import MaskedEncoder

# Clips padded to one length, [clips, samples], and the number of frames of each, to the codes of
# each in three codebooks, int64 on any device.
Encode = Callable[[Tensor, Sequence[int]], list[list[Tensor]]]

_LOG = logging.getLogger(__name__)


def resolve_engine(engine: CodecEngine, device: Device, encoder_rearranges: bool) -> str:
    """Choose the engine here, once for all workers of a run; `open_engine` takes its name.

    `encoder_rearranges` is what `supports` says of the weights.
    Raises: ConfigError for a named engine that does not run here.
    """
    if engine not in get_args(CodecEngine):
        raise _refused(engine, "there is no such engine")
    if device == "cuda":
        if engine in ("native", "tiled"):
            raise _refused(engine, f"it runs on a CPU and snac.device is {device}")
        return "eager"
    return f"{_on_cpu(engine, encoder_rearranges)}-{instruction_set()}"


def _on_cpu(engine: CodecEngine, encoder_rearranges: bool) -> CodecEngine:
    if engine == "eager" or (engine == "auto" and not encoder_rearranges):
        return "eager"
    if not encoder_rearranges:
        raise _refused(engine, "the encoder of these weights is not built as the published one is")
    if engine == "tiled":
        return engine
    try:
        native_kernels()
        return "native"
    except Unavailable as error:
        if engine == "native":
            raise _refused(engine, str(error)) from error
        _LOG.warning("SNAC encodes at about 0.6 of its speed without compiled code: %s", error)
        return "tiled"


def open_engine(model: SNAC, engine: str, device: Device) -> Encode:
    """Bind the engine `resolve_engine` named to `model`, whose weight norm is removed.

    Returns the encoder, which gives a clip the same codes in any batch.
    Raises: ConfigError when this machine cannot run just that engine.
    """
    name, _, wanted = engine.partition("-")
    if device == "cpu" and wanted != instruction_set():
        why = f"this machine computes with {instruction_set()}, with which some codes would differ"
        raise _unequal(engine, why, "Run koe and its workers on machines of one kind.")
    if name == "eager":
        return _of_modules(model, device)
    try:
        kernels: Kernels = native_kernels() if name == "native" else TorchKernels()
    except Unavailable as error:
        remedy = "Install a C compiler on every machine, or set snac.engine: tiled."
        raise _unequal(engine, str(error), remedy) from error
    encoder = TiledEncoder(model, kernels)

    def encode(audio: Tensor, frames: Sequence[int]) -> list[list[Tensor]]:
        pairs = zip(audio, frames, strict=True)
        return [list(encoder.encode(clip[: FRAME_SAMPLES * n])) for clip, n in pairs]

    return encode


def _unequal(engine: str, why: str, remedy: str) -> ConfigError:
    what = f"the run's codec engine {engine} cannot be used on this machine ({platform.node()})"
    return ConfigError(what, why, remedy)


def _of_modules(model: SNAC, device: Device) -> Encode:
    encoder = MaskedEncoder(model.encoder)

    def encode(audio: Tensor, frames: Sequence[int]) -> list[list[Tensor]]:
        latents = encoder(audio.to(device).unsqueeze(1), frames)
        codebooks = [codes.cpu() for codes in model.quantizer(latents)[1]]
        sizes = [codes.shape[1] // max(frames) for codes in codebooks]  # codes per frame
        return [
            [codes[clip, : size * n] for codes, size in zip(codebooks, sizes, strict=True)]
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
