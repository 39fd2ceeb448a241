"""SNAC encoding on one GPU: the package, koe's engines in each precision, and what limits them.

    python -m benchmarks.snac_gpu                       about two minutes on an H200
    python -m benchmarks.snac_gpu --weights DIR         the published weights
    python -m benchmarks.snac_gpu --device cpu --clips 3 --exact-seconds 3     tries the script itself

Real clips of a log-normal mix of lengths, in this order, and the results file is written after each:

1. `package`: snac as its README uses it, one clip at a time, with the TF32 that torch gives it.
2. `engines`: koe's engines and precisions on the same clips from memory, and the codes that differ
   between a batch and each clip alone (there must be none).
3. `bare`: the encoder alone, its launches recorded, without copies and codes on the host.
4. `distance`: the codes that differ from FP64 on the device, of the package and of each engine, with
   every such code's margin: how much closer the nearest entry is (0 to 4).
5. `files`: the encode stage on FLAC files, with as many threads as `--threads` names.

The weights are untrained by default, whose codes compete.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import torch
from rich.console import Console
from snac import SNAC

from benchmarks.clips import add_data_option, real_clips
from benchmarks.codec_distance import code_margins, differing, entries_used
from benchmarks.results import run_command, write_figures
from benchmarks.snac_package import flat, package_codes, package_fp32, package_latents
from koe.schema import SCORED
from koe.vocabulary import CODEC_HZ, FRAME_SAMPLES, unflatten_codes
from stages.encode import EncodeStage
from stages.native.repeatable import deterministic_inference
from stages.settings import CodecEngine, CodecPrecision, EncodeConfig
from stages.snac.architecture import fold_weight_norm
from stages.snac.codec import Codec, CodecSpec, resolve_codec
from stages.snac.launches import Recorded
from stages.snac.on_gpu import CHUNK_FRAMES, RowsEncoder, fused_pointwise
from stages.snac.packed import MOST_CHUNKS
from stages.snac.pointwise import TorchPointwise
from stages.snac.untrained import untrained_model
from stages.snac.weights import UNTRAINED

WAYS: dict[str, list[tuple[CodecEngine, CodecPrecision]]] = {
    "cuda": [("fused", "tf32"), ("fused", "fp32"), ("eager", "fp32")],
    "cpu": [("auto", "fp32")],
}
_LEAST_SECONDS = 5.0  # that a measurement takes
_MARGINS = 200  # that are written of each engine, the largest first


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    clips = real_clips(options.clips, CODEC_HZ, options.data)
    figures: dict[str, Any] = {
        "peer": "snac 1.2.1, eager, one clip at a time, TF32",
        "unit": "audio-seconds/s",
        "device": options.device,
        "weights": options.weights,
        "clips": len(clips),
        "audio_seconds": round(_seconds(clips), 1),
    }
    console = Console()
    for name, measure in PARTS.items():
        figures[name] = measure(options, clips)
        path = write_figures("snac_gpu_engines", **figures)
        console.print_json(data={name: _shortened(figures[name])})
    console.print(path)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default=UNTRAINED, help="a folder with the published weights")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--exact-seconds", type=float, default=120, help="of audio, in FP64")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="that decode files")
    add_data_option(parser)
    return parser.parse_args()


def _package(options: argparse.Namespace, clips: Sequence[np.ndarray]) -> dict[str, Any]:
    model = _model(options)
    some = list(_up_to(clips, 300 if options.device == "cuda" else 10))
    _synchronized(options.device, lambda: package_codes(model, some[0], options.device))
    seconds = _synchronized(
        options.device, lambda: [package_codes(model, clip, options.device) for clip in some]
    )
    return {"rate": _rate(some, seconds), "audio_seconds": round(_seconds(some), 1)}


def _engines(options: argparse.Namespace, clips: Sequence[np.ndarray]) -> dict[str, Any]:
    return {
        f"{engine} {precision}": _engine(_spec(options, engine, precision), clips)
        for engine, precision in WAYS[options.device]
    }


def _engine(spec: CodecSpec, clips: Sequence[np.ndarray]) -> dict[str, Any]:
    codec = Codec.open(spec)
    batch_samples = int(EncodeStage(spec).batch_seconds * CODEC_HZ)
    names = ["clip"] * len(clips)

    def encode() -> dict[int, np.ndarray]:
        return dict(codec.stream(enumerate(clips), batch_samples, names))

    found = encode()  # the first pass measures memory and records the launches
    if spec.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rates = [_rate(clips, _synchronized(spec.device, encode)) for _ in range(3)]
    alone = range(0, len(clips), max(1, len(clips) // 20))
    apart = [differing([codec.encode([clips[n]])[0]], [found[n]]) for n in alone]
    figures: dict[str, Any] = {"name": spec.engine, "rates": rates, "codes": 0}
    figures["codes"] = sum(map(len, found.values()))
    figures["differing_from_alone"] = sum(apart)
    if spec.device == "cuda":
        figures["peak_megabytes"] = torch.cuda.max_memory_allocated() // 10**6
    return figures


def _bare(options: argparse.Namespace, clips: Sequence[np.ndarray]) -> dict[str, Any]:
    model = fold_weight_norm(_model(options))
    on_cuda = options.device == "cuda"
    encoder = RowsEncoder(model, fused_pointwise("cuda") if on_cuda else TorchPointwise())
    found = {}
    for precision in ("tf32", "fp32") if on_cuda else ("fp32",):
        for chunks in (1, 2, MOST_CHUNKS) if on_cuda else (1,):
            with deterministic_inference(precision == "tf32"):
                rate = _bare_rate(encoder, clips, chunks * CHUNK_FRAMES, options.device)
            found[f"{precision}, {chunks * CHUNK_FRAMES} frames"] = rate
    return found


def _bare_rate(
    encoder: RowsEncoder, clips: Sequence[np.ndarray], frames: int, device: str
) -> float:
    """Return audio-seconds/s of launches that are full, one after the other."""
    audio = np.resize(np.concatenate(clips[:50]), frames * FRAME_SAMPLES)
    inside = torch.ones(frames, dtype=torch.uint8, device=device)
    given = torch.from_numpy(audio).to(device), inside
    pool = torch.cuda.graph_pool_handle() if device == "cuda" else None
    launch = Recorded(encoder.encode, given, pool)
    took = _synchronized(device, lambda: launch(*given))
    times = max(1, int(_LEAST_SECONDS / 2 / took))
    seconds = _synchronized(device, lambda: [launch(*given) for _ in range(times)])
    return round(times * len(audio) / CODEC_HZ / seconds, 2)


def _distance(options: argparse.Namespace, clips: Sequence[np.ndarray]) -> dict[str, Any]:
    some = list(_up_to(clips, options.exact_seconds))
    exact, device = _model(options).double(), options.device
    judge = copy.deepcopy(exact).cpu()
    values = [package_latents(exact, clip, device).cpu() for clip in some]
    with torch.inference_mode():
        expected = [flat(judge.quantizer(latents)[1]) for latents in values]
    ways: dict[str, Callable[[], list[np.ndarray]]] = {
        "package, as torch sets it": lambda: [
            package_codes(exact.float(), clip, device) for clip in some
        ],
        "package fp32": lambda: package_fp32(exact.float(), some, device),
    }
    for engine, precision in WAYS[device]:
        spec = _spec(options, engine, precision)
        ways[f"{engine} {precision}"] = lambda spec=spec: Codec.open(spec).encode(some)
    found: dict[str, Any] = {
        "audio_seconds": round(_seconds(some), 1),
        "codes": sum(map(len, expected)),
        "entries_used": entries_used(expected),
    }
    return found | {name: _judged(judge, values, expected, way()) for name, way in ways.items()}


def _judged(
    judge: SNAC,
    values: Sequence[torch.Tensor],
    expected: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
) -> dict[str, Any]:
    """Count the codes that differ from FP64, and give the margin of each, the largest first."""
    margins: list[float] = []
    for latents, exact, codes in zip(values, expected, found, strict=True):
        levels = (np.concatenate(unflatten_codes(one)) for one in (exact, codes))
        differs = np.not_equal(*levels)
        margins += code_margins(judge, latents, codes)[differs].tolist()
    largest = [float(f"{margin:.1e}") for margin in sorted(margins, reverse=True)]
    return {"differing": len(margins), "margins": largest[:_MARGINS]}


def _files(options: argparse.Namespace, clips: Sequence[np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {"threads": options.threads}
    with tempfile.TemporaryDirectory() as folder:
        table = _scored(Path(folder), clips)
        for engine, precision in WAYS[options.device]:
            spec = _spec(options, engine, precision)
            config = EncodeConfig(threshold_ovrl=0, cpus_per_worker=options.threads)
            encode = EncodeStage(spec, config).open()
            assert encode(table).kept.num_rows == len(clips)
            rates = [
                _rate(clips, _synchronized(options.device, lambda: encode(table)))  # noqa: B023
                for _ in range(3)
            ]
            found[f"{engine} {precision}"] = rates
    return found


def _scored(folder: Path, clips: Sequence[np.ndarray]) -> pa.Table:
    """Write the clips as FLAC, and return their table as the score stage would."""
    rows = []
    for number, clip in enumerate(clips):
        path = folder / f"{number:05}.flac"
        soundfile.write(path, clip, CODEC_HZ)
        rows.append(
            dict.fromkeys(SCORED.names)
            | {"id": str(number), "source": "benchmark", "text": "", "audio_kind": "file"}
            | {"audio_path": str(path), "audio_member": "", "audio_offset": 0}
            | {"audio_bytes": path.stat().st_size, "audio_hz": CODEC_HZ, "channels": 1}
            | {"start_seconds": 0.0, "seconds": len(clip) / CODEC_HZ}
            | {"ovrl": 3.0, "windows": 1, "ovrl_error": 0.0, "scorer": "none"}
        )
    return pa.Table.from_pylist(rows, schema=SCORED)


def _spec(options: argparse.Namespace, engine: CodecEngine, precision: CodecPrecision) -> CodecSpec:
    return resolve_codec(options.weights, None, 0, options.device, engine, precision)


def _model(options: argparse.Namespace) -> SNAC:
    if options.weights == UNTRAINED:
        model = untrained_model(0)[0]
    else:
        model = SNAC.from_pretrained(options.weights)
    return model.eval().to(options.device)


def _up_to(clips: Sequence[np.ndarray], seconds: float) -> Iterator[np.ndarray]:
    """Yield the first clips, until they are as long, and at least one."""
    found = 0.0
    for clip in clips:
        yield clip
        found += len(clip) / CODEC_HZ
        if found >= seconds:
            return


def _synchronized(device: str, function: Callable[[], object]) -> float:
    """Return the seconds that a function takes, with all that it started on the device."""
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _seconds(clips: Sequence[np.ndarray]) -> float:
    return sum(map(len, clips)) / CODEC_HZ


def _rate(clips: Sequence[np.ndarray], seconds: float) -> float:
    return round(_seconds(clips) / seconds, 2)


def _shortened(figures: Any) -> Any:
    """Leave out what is too long for a terminal: all but the ten largest margins."""
    if isinstance(figures, dict):
        return {name: _shortened(value) for name, value in figures.items()}
    return figures[:10] if isinstance(figures, list) else figures


PARTS = {
    "package": _package,
    "engines": _engines,
    "bare": _bare,
    "distance": _distance,
    "files": _files,
}


if __name__ == "__main__":
    run_command(main)
