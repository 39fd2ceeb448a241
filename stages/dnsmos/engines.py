"""The engines and precisions of the DNSMOS network, and which of them this machine can use.

| engine | runs on | seconds per window of a mix of clips, one Zen 4 core |
|---|---|---|
| native, FP32 | CPU with AVX2 or NEON; needs a C compiler, here or where koe was installed | 0.051 |
| native, BF16 (`precision: bf16`) | CPU with AVX-512 BF16; needs a C compiler as well | 0.033 |
| torch, BF16 | CPU with AVX-512 BF16 or AMX, CUDA | 0.079 |
| onnxruntime, FP32 | any provider | 0.147 |
| torch, FP32 | CUDA; a CPU too, slowly | |

The spectrogram and the head, 1 % of the work, are FP32 always: those of the engine, and where torch has
BF16 on a CPU those of onnxruntime. With AMX, which multiplies BF16 in tiles, `auto` is torch: that was
not measured. The native engine gives the same bits on every CPU; the libraries sum as the instruction
set lets them, so a run that uses one carries it in its engine's name.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from koe.errors import ConfigError
from stages.dnsmos.batches import BatchedNetwork
from stages.dnsmos.kernels import (
    SOURCE,
    SPECTROGRAM_SOURCE,
    NativeHead,
    NativeShared,
    NativeSpectrogram,
    load_shared,
)
from stages.dnsmos.network import (
    EDGE_FRAMES,
    FRAME_SAMPLES,
    WINDOW_SAMPLES,
    Network,
    Part,
    Parts,
    UnknownNetwork,
    cut,
)
from stages.dnsmos.on_torch import require_sound, shared_layers, torch_parts
from stages.dnsmos.onnx_session import Run, open_session, require_provider, runner, shapes
from stages.native.build import Unavailable
from stages.native.compiler import bf16_target, instruction_set, load_library
from stages.native.repeatable import deterministic_inference, require_gpu
from stages.settings import Precision, Provider, ScorerEngine

# How far a clip's ovrl may lie from FP32 when the convolutions run in BF16. Where pixels are rounded, none
# of 87 clips lay further than 0.012; where Winograd's points are, none of 420 further than 0.032.
BF16_OVRL_ERROR, NATIVE_BF16_OVRL_ERROR = 0.03, 0.12
# Of the largest feature, how far one of the compiled convolutions may lie from onnxruntime's.
_NATIVE_TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.05}

_LOG = logging.getLogger(__name__)


def ovrl_error(precision: Precision, engine: str) -> float:
    """Return how far a clip's ovrl may lie from its FP32 value; 0 for FP32 itself."""
    if precision == "fp32":
        return 0.0
    return NATIVE_BF16_OVRL_ERROR if engine.startswith(("native", "auto")) else BF16_OVRL_ERROR


def describe_engine(provider: Provider, precision: Precision, engine: str) -> str:
    """Say what computes the scores, and what would be faster on this machine."""
    where = "on a GPU" if provider == "cuda" else "on CPUs"
    said = f"DNSMOS runs {where} in {precision.upper()}, with the {engine} engine"
    if engine.startswith("onnxruntime") and precision == "bf16":
        said += " and torch's convolutions"
    if engine.startswith("native") and precision == "fp32" and _multiplies_bf16_faster():
        said += (
            "; score.precision: bf16 would be about 1.4 times as fast here, with the same decisions "
            "at the threshold but stored scores that are up to 0.06 off"
        )
    return said


def _multiplies_bf16_faster() -> bool:
    try:
        return bool(bf16_target()) and not _has_amx()
    except Unavailable:
        return False


def _has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def require_precision(precision: Precision, provider: Provider) -> None:
    """Check that this machine computes in `precision` faster than in FP32.

    Raises: ConfigError, as BF16 that is emulated is several times slower than FP32.
    """
    if precision == "fp32" or provider == "cuda":
        return
    found = torch.cpu.get_capabilities()
    if not (found.get("avx512_bf16") or found.get("amx_bf16")):
        raise ConfigError(
            "score.precision bf16 cannot be used",
            f"this CPU ({found.get('cpu_name', 'unknown')}) has neither AVX-512 BF16 nor AMX",
            "Set score.precision: fp32.",
        )


def resolve_engine(
    engine: ScorerEngine, provider: Provider, precision: Precision, libraries: bool = False
) -> str:
    """Choose the engine here, once for all workers of a run; `auto` is what is fastest.

    The name says how sums are taken, which decides a score's last bits: on a CPU with the
    instruction set, `onnxruntime-avx512`, unless they are the same on all. `libraries` says that
    the scores depend on torch or onnxruntime whatever the engine is.
    Raises: ConfigError for an engine that does not run here, or not with the others.
    """
    chosen = _choose(engine, provider, precision)
    portable = chosen == "native" and not libraries
    return f"{chosen}-{instruction_set()}" if provider == "cpu" and not portable else chosen


def _choose(engine: ScorerEngine, provider: Provider, precision: Precision) -> ScorerEngine:
    if provider == "cuda" and engine == "auto":
        return "torch"
    if engine == "onnxruntime" and (provider, precision) == ("cuda", "bf16"):
        raise ConfigError(
            "score.engine onnxruntime cannot be used with score.precision bf16",
            "the BF16 convolutions are torch's",
            "Set score.engine: auto.",
        )
    if engine in ("torch", "onnxruntime"):
        return engine
    if engine == "auto" and precision == "bf16" and _has_amx():
        return "onnxruntime"
    try:
        _require_native(provider, precision)
        return "native"
    except Unavailable as error:
        if engine == "native":
            raise ConfigError(
                "score.engine native cannot be used",
                str(error),
                "Set score.engine: auto, or install a C compiler on every machine (Debian's package gcc).",
            ) from error
        if provider == "cpu":
            _LOG.warning(
                "DNSMOS scores with %s, at about 0.4 of the speed of compiled code: %s. "
                "Install a C compiler (Debian's packages gcc and libc6-dev) on every machine.",
                "onnxruntime" if precision == "fp32" else "torch in BF16",
                error,
            )
    return "onnxruntime"


def _required(engine: str, provider: Provider, precision: Precision) -> ScorerEngine:
    """Return the engine that a name of `resolve_engine`, or of the settings, stands for.

    Raises: ConfigError when this machine cannot run just that engine.
    """
    name, _, wanted = engine.partition("-")
    if wanted and wanted != instruction_set():
        raise ConfigError(
            f"the run's scorer engine {engine} cannot be used on this machine ({platform.node()})",
            f"it computes with {instruction_set()}, with which the last bits of scores would differ",
            "Run koe and its workers on machines of one kind.",
        )
    return _choose(name, provider, precision)  # pyright: ignore[reportArgumentType]


def _require_native(provider: Provider, precision: Precision) -> None:
    if provider != "cpu":
        raise Unavailable(f"it runs on a CPU, not on {provider}")
    for source in (SOURCE, SPECTROGRAM_SOURCE):
        load_library(source)
    load_shared(precision)


def open_network(
    path: str,
    provider: Provider,
    precision: Precision,
    engine: str,
    map_segments: Callable[..., Any],
    gpu_share: float = 1.0,
) -> Network | BatchedNetwork:
    """Load the model file and bind its parts: on a GPU for many clips at once.

    `map_segments` as `Network` takes it, `gpu_share` as `BatchedNetwork` does.

    Raises: ConfigError for another kind of model, or what this machine lacks.
    """
    require_precision(precision, provider)
    engine = _required(engine, provider, precision)
    model = Path(path).read_bytes()
    if not (engine == "torch" and provider == "cuda"):
        require_provider(provider)
    found = shapes(open_session(model, "cpu", path))
    if found != ([[WINDOW_SAMPLES]], [[3]]):
        raise _not_dnsmos(path, f"it maps {found[0]} to {found[1]}")
    try:
        parts = cut(model)
    except UnknownNetwork as error:
        raise _not_dnsmos(path, str(error)) from error
    if engine == "torch" and provider == "cuda":
        require_gpu("score.provider")
        on_gpu = torch_parts(parts, "cuda", precision)
        with deterministic_inference():
            require_sound(on_gpu[1], parts.weights, "cuda", precision)
        return BatchedNetwork(on_gpu, gpu_share=gpu_share)
    if engine == "torch":
        return Network(*torch_parts(parts, "cpu", precision), map_segments)
    spectrogram, shared, head = (
        runner(open_session(part, provider, path))
        for part in (parts.spectrogram, parts.shared, parts.head)
    )
    if engine == "native":
        made = _native(parts, precision, spectrogram, shared, head)
        on_spectrogram, on_shared, on_head = map(_on_tensors, made)
        return Network(on_spectrogram, on_shared, on_head, map_segments)
    return Network(
        _on_tensors(spectrogram),
        _on_tensors(shared)
        if precision == "fp32"
        else shared_layers(parts.weights, "cpu", precision),
        _on_tensors(head),
        map_segments,
    )


def _on_tensors(run: Run) -> Part:
    """Turn a function of arrays into one of tensors, which share their memory."""
    return lambda values: torch.from_numpy(run(values.contiguous().numpy()))


def _native(parts: Parts, precision: Precision, *references: Run) -> tuple[Run, Run, Run]:
    """Open the compiled parts, and compare each with onnxruntime's once."""
    made = (
        NativeSpectrogram(parts.filters),
        NativeShared(parts.weights, precision),
        NativeHead(parts.head_weights),
    )
    allowed = (1e-4, _NATIVE_TOLERANCES[precision], 1e-4)
    draws = np.random.default_rng(0)
    frames = draws.normal(0, 0.1, (1, EDGE_FRAMES, FRAME_SAMPLES))
    power = draws.uniform(-12, 2, (1, 1, EDGE_FRAMES, 161))
    features = draws.exponential(1, (1, 32, EDGE_FRAMES, 40))
    compared = zip(made, references, (frames, power, features), allowed, strict=True)
    for run, reference, values, tolerance in compared:
        values = values.astype(np.float32)
        expected = reference(values)
        difference = float(np.abs(run(values) - expected).max() / np.abs(expected).max())
        if not difference < tolerance:
            raise ConfigError(
                "score.engine native cannot be used",
                f"its {type(run).__name__}, compiled from C, is off by {difference:.1e}",
                "Set score.engine: onnxruntime, and report the compiler's version.",
            )
    return made


def _not_dnsmos(path: str, why: str) -> ConfigError:
    return ConfigError(
        f"{path} is not a DNSMOS P.835 model",
        f"{why}; expected [[{WINDOW_SAMPLES}]] to [[3]]",
        "Use sig_bak_ovr.onnx, or leave score.model out.",
    )
