"""The engines that run SNAC's encoder, and which of them a run uses.

| engine | runs on | what | audio-seconds/s, one Zen 5 core |
|---|---|---|---|
| native | CPU with AVX2 or NEON | `encoder.py` on compiled C; needs a C compiler, here or where koe was installed | 42 |
| tiled | CPU | `encoder.py` on torch's operations | 0.3 of native |
| eager | CPU, CUDA | the package's modules, their weight norm removed | 6, on Zen 4 |
| fused | CUDA | `on_gpu.py` on Triton's kernels, in launches of a few sizes (`packed.py`) | |

On CUDA, eager runs clips of several lengths at once (`masking.py`), on an H200 with 1,022
audio-seconds/s in batches of 60 s. `benchmarks/snac_gpu.py` measures fused.

`auto` is native on a CPU, tiled where there is no compiler; on CUDA it is fused where its kernels
run on this machine's GPU and agree with torch, and eager elsewhere: a rule, because a measurement
at the start would be decided by noise. Tiled is faster than eager where there is no compiler, and
its memory does not grow with the clip.

Engines differ in the order in which they sum, so where two entries are nearly as close, one may choose
the other. On the untrained weights that is rare: 3 of 16,702 codes (`benchmarks/codec_distance.py`);
weights that amplify rounding have more. So the engine is chosen once, where the run starts; its name
is part of receipts and of the shards' metadata, and a worker that cannot run just that one refuses.
The native engine gives the same codes on every CPU. The others sum as torch does with the CPU's
instruction set, which is then part of the name, `tiled-avx512`; on CUDA the precision of the products
is, `fused-tf32`.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, get_args

import numpy as np
import torch
from snac import SNAC
from torch import Tensor

from koe.errors import ConfigError
from koe.vocabulary import FRAME_SAMPLES
from stages.native.build import Unavailable
from stages.native.compiler import instruction_set
from stages.settings import CodecEngine, CodecPrecision, Device
from stages.snac.batches import Clip, Encode, Grouped
from stages.snac.compiled import native_kernels
from stages.snac.encoder import TiledEncoder
from stages.snac.kernels import Kernels, TorchKernels
from stages.snac.masking import MaskedEncoder
from stages.snac.on_gpu import RowsEncoder, fused_pointwise, require_agreement, why_not_fused
from stages.snac.packed import PackedEncoder

# Seconds of audio at once on CUDA.
_EAGER_SECONDS = 60.0
_FUSED_SECONDS = 88.0

_OTHER_BUILD = "the encoder of these weights is not built as the published one is"

_LOG = logging.getLogger(__name__)


class ClipStream(Protocol):
    """Encodes clips as they come, each as if it were alone; `codec.Codec.stream` says how."""

    def stream(
        self, clips: Iterable[Clip], batch_samples: int, names: Sequence[str]
    ) -> Iterator[tuple[int, np.ndarray]]: ...


def resolve_engine(
    engine: CodecEngine,
    device: Device,
    encoder_rearranges: bool,
    precision: CodecPrecision = "fp32",
) -> str:
    """Choose the engine here, once for all workers of a run; `open_stream` takes its name.

    `encoder_rearranges` is what `supports` says of the weights.
    Raises: ConfigError for a named engine, or a precision, that does not run here.
    """
    if engine not in get_args(CodecEngine):
        raise _refused(engine, "there is no such engine")
    if device == "cuda":
        return _on_cuda(engine, encoder_rearranges, precision)
    if engine == "fused":
        raise _refused(engine, f"it runs on CUDA and snac.device is {device}")
    if precision != "fp32":
        raise _imprecise(precision, "CPUs compute in FP32")
    chosen = _on_cpu(engine, encoder_rearranges)
    return chosen if chosen == "native" else f"{chosen}-{instruction_set()}"


def describe_engine(device: Device, engine: str) -> str:
    """Say what computes the codes; what would be faster was said when it was not found."""
    where = "a GPU" if device == "cuda" else "CPUs"
    return f"SNAC runs on {where}, with the {engine} engine"


def _on_cuda(engine: CodecEngine, encoder_rearranges: bool, precision: CodecPrecision) -> str:
    if engine in ("native", "tiled"):
        raise _refused(engine, "it runs on a CPU and snac.device is cuda")
    if engine == "fused" and not encoder_rearranges:
        raise _refused(engine, _OTHER_BUILD)
    if engine == "fused" or (engine == "auto" and _fused_runs_here(encoder_rearranges)):
        return f"fused-{precision}"
    if precision != "fp32":
        raise _imprecise(precision, "the engine eager computes in FP32")
    return "eager"


def _fused_runs_here(encoder_rearranges: bool) -> bool:
    """Tell whether the fast engine of a GPU can be checked here and agrees; otherwise say why not."""
    why = why_not_fused() if encoder_rearranges else _OTHER_BUILD
    if not why:
        return True
    _LOG.warning(
        "SNAC runs on CUDA with the package's modules (snac.engine: eager), not with the engine "
        "fused, because %s. If the workers' machines run it, set snac.engine: fused.",
        why,
    )
    return False


def _on_cpu(engine: CodecEngine, encoder_rearranges: bool) -> CodecEngine:
    if engine == "eager" or (engine == "auto" and not encoder_rearranges):
        return "eager"
    if not encoder_rearranges:
        raise _refused(engine, _OTHER_BUILD)
    if engine == "tiled":
        return engine
    try:
        native_kernels()
        return "native"
    except Unavailable as error:
        if engine == "native":
            raise _refused(engine, str(error)) from error
        _LOG.warning(
            "SNAC encodes with the engine tiled, at about 0.3 of the speed of compiled code: %s. "
            "Install a C compiler (Debian's packages gcc and libc6-dev) on every machine.",
            error,
        )
        return "tiled"


def open_stream(model: SNAC, engine: str, device: Device, gpu_share: float = 1.0) -> ClipStream:
    """Bind the engine `resolve_engine` named to `model`, whose weight norm is removed.

    Returns the encoder, which gives a clip the same codes in any batch. On CUDA, `gpu_share` of the
    GPU's memory bounds the batches.
    Raises: ConfigError when this machine cannot run just that engine.
    """
    if not engine.startswith("fused-"):
        return Grouped(open_engine(model, engine, device), device, gpu_share)
    tf32 = engine == "fused-tf32"
    try:
        encoder = RowsEncoder(model, fused_pointwise(device))
        require_agreement(encoder, model, device, tf32)
    except Unavailable as error:
        remedy = (
            "Install Triton and a C compiler on every machine with a GPU, or set snac.engine: "
            "eager, which computes with torch alone."
        )
        raise _unequal(engine, str(error), remedy) from error
    return PackedEncoder(encoder, torch.device(device), tf32, gpu_share)


def usual_batch_seconds(engine: str, device: Device) -> float:
    """Return how much audio an engine encodes at once; 0: clip by clip.

    On a CPU eager batches of 8 are slower than single clips.
    """
    if device == "cpu":
        return 0.0
    return _EAGER_SECONDS if engine == "eager" else _FUSED_SECONDS


def open_engine(model: SNAC, engine: str, device: Device) -> Encode:
    """Bind an engine that takes clips padded to one length. Raises: as `open_stream`."""
    name, _, wanted = engine.partition("-")
    if device == "cpu" and name != "native" and wanted != instruction_set():
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


def _imprecise(precision: CodecPrecision, why: str) -> ConfigError:
    return ConfigError(
        f"snac.precision {precision} cannot be used",
        why,
        "Set snac.precision: fp32, or snac.device: cuda with snac.engine: fused.",
    )
