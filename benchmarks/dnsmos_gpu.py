"""DNSMOS on a GPU, many clips at once: windows per second, and what each rounding costs in a score.

    python -m benchmarks.dnsmos_gpu [--clips 240] [--rounds 4] [--data FOLDER]
    python -m benchmarks.dnsmos_gpu --device cpu --clips 3 --rounds 1     tries the script, writes nothing

Real clips (16 kHz, a log-normal mix of lengths) are scored by speechmos without its P.808 score, on
all CPU cores and, where onnxruntime has CUDA, on the GPU; by koe one clip at a time; by koe in
batches, in FP32, FP32 by three products of TF32, TF32 and BF16; by the network alone, on samples that
lie on the GPU; and by koe's score stage, which reads, decodes and resamples FLAC files of 24 kHz.
Results are written after each part, so that a run that is cut short leaves what it found.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console

from benchmarks.clips import add_data_option, flac_files, real_clips
from benchmarks.dnsmos import speechmos
from benchmarks.results import run_command, write_figures
from koe.errors import ConfigError
from stages.dnsmos.batches import FRAMES_AT_ONCE, BatchedNetwork
from stages.dnsmos.engines import BF16_OVRL_ERROR
from stages.dnsmos.network import HOP_SAMPLES, WINDOW_SAMPLES, Clip, Part, cut
from stages.dnsmos.on_torch import Arithmetic, shared_layers, torch_parts
from stages.dnsmos.scorer import SCORER_HZ, find_model, mean_scores, window_starts
from stages.native.repeatable import deterministic_inference, require_gpu
from stages.score import ScoreStage
from stages.settings import Precision, ScoreConfig

THRESHOLD = 2.5
PEER = "speechmos without P.808, all CPU cores"
# Arithmetic of the convolutions, and whether cuDNN fuses them with ReLU; None: as koe does.
WAYS: dict[str, tuple[Arithmetic, bool | None]] = {
    "fp32": ("fp32", None),
    "fp32, fused": ("fp32", True),
    "tf32x3": ("tf32x3", None),
    "tf32": ("tf32", None),
    "bf16": ("bf16", None),
    "bf16, not fused": ("bf16", False),
}
SETTINGS: tuple[Precision, ...] = ("fp32", "bf16")
_ROUNDED = ("tf32", "bf16", "bf16, not fused", "bf16, alone")
_PEER_CLIPS = 12
_BATCH_SIZES = (4_096, 8_192, 32_768)  # beside `FRAMES_AT_ONCE`
_USUAL_WINDOWS = 4  # of a clip in the batch that lies on the GPU
_FILE_HZ = 24_000
_STAGE_CPUS = (1, 4, 16)
_SHOWN_KERNELS = 8

Scores = dict[str, list[float]]  # by the way of computing, ovrl of every clip
Networks = dict[str, tuple[Part, Part, Part]]


def main() -> int:
    options = _options()
    if options.device == "cuda":
        require_gpu("--device")
    audios = real_clips(options.clips, SCORER_HZ, options.data)
    clips = [
        Clip(number, f"clip-{number}", audio.astype(np.float32), window_starts(len(audio), "reference"))
        for number, audio in enumerate(audios)
    ]  # fmt: skip
    networks = _networks(options.device)
    figures: dict[str, Any] = {
        "peer": PEER,
        "unit": "windows per second",
        "clips": len(clips),
        "windows": sum(len(clip.starts) for clip in clips),
        "audio_seconds": round(sum(map(len, audios)) / SCORER_HZ, 1),
    }
    for name, measure in _parts(clips, networks, options).items():
        figures[name] = measure()
        if name == "stage_on_files":  # of the speed on the same clips in memory
            figures["stage_share"] = {
                precision: round(max(of.values()) / figures["batched"][precision]["median"], 3)
                for precision, of in figures[name].items()
            }
        Console().print(name, figures[name])
        if options.device == "cuda":
            write_figures("dnsmos_gpu_batches", **figures)
    return 0


def _networks(device: str) -> Networks:
    parts = cut(Path(find_model().path).read_bytes())
    spectrogram, _, head = torch_parts(parts, device, "fp32")
    return {
        name: (spectrogram, shared_layers(parts.weights, device, arithmetic, fuse), head)
        for name, (arithmetic, fuse) in WAYS.items()
        if device == "cuda" or fuse is None
    }


def _parts(clips: list[Clip], networks: Networks, options) -> dict[str, Callable[[], Any]]:
    """Return what is measured, what matters most first."""
    scores: Scores = {}
    device, rounds = options.device, options.rounds

    def batched(name: str, *size: int, of: list[float]) -> dict[str, Any]:
        return _batched(BatchedNetwork(networks[name], device, *size), clips, rounds, of)

    def one_by_one(name: str) -> float:
        of = scores.setdefault(f"{name}, alone", [])
        return _one_by_one(BatchedNetwork(networks[name], device), clips, of)

    sizes = _BATCH_SIZES if device == "cuda" else ()
    parts: dict[str, Callable[[], Any]] = {
        "batched": lambda: {n: batched(n, of=scores.setdefault(n, [])) for n in networks},
        "speechmos": lambda: _peers(clips[:_PEER_CLIPS], scores),
        "one_clip_at_a_time": lambda: {n: one_by_one(n) for n in SETTINGS},
        "scores": lambda: _differences(scores),
        "network_alone": lambda: {n: _alone(of, device, rounds) for n, of in networks.items()},
        "stage_on_files": lambda: _stage(clips, options),
        "frames_at_once": lambda: {
            n: {size: batched(n, size, of=[]) for size in sizes} for n in SETTINGS
        },
    }
    if device == "cuda":
        parts["kernels"] = lambda: {n: _kernels(networks[n]) for n in (*SETTINGS, "tf32x3")}
    return parts


def _batched(network: BatchedNetwork, clips: list[Clip], rounds: int, scores: list[float]) -> dict:
    """Score all clips `rounds` times, and keep the scores of the last."""
    found: dict[Clip, np.ndarray] = {}

    def score() -> None:
        found.update(network.raw_scores_of(clips))

    score()  # loads kernels, and takes memory
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    speeds = _speeds(score, sum(len(clip.starts) for clip in clips), rounds)
    scores[:] = [mean_scores(found[clip], None).ovrl for clip in clips]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"windows_per_second": speeds, "median": median(speeds), "peak_gpu_mb": peak >> 20}


def _one_by_one(network: BatchedNetwork, clips: list[Clip], scores: list[float]) -> float:
    def score() -> None:
        found = [raw for clip in clips for _, raw in network.raw_scores_of([clip])]
        scores[:] = [mean_scores(raw, None).ovrl for raw in found]

    score()
    (speed,) = _speeds(score, sum(len(clip.starts) for clip in clips), 1)
    return speed


def _speeds(score: Callable[[], object], num_windows: int, rounds: int) -> list[float]:
    speeds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        score()
        speeds.append(round(num_windows / (time.perf_counter() - begin), 1))
    return speeds


def _peers(clips: list[Clip], scores: Scores) -> dict[str, Any]:
    score = speechmos(with_p808=False)
    num_windows = sum(len(clip.starts) for clip in clips)

    def run() -> None:
        scores["speechmos"] = [score(clip.audio)[0][2] for clip in clips]

    found: dict[str, Any] = {"clips": len(clips), "cpu": _speeds(run, num_windows, 1)[0]}
    try:
        on_gpu = speechmos(with_p808=False, on_gpu=True)
    except ConfigError as error:
        found["gpu"] = f"not measured: {error.why}"
        return found
    scored = [on_gpu(clip.audio)[0][2] for clip in clips]
    found["gpu"] = _speeds(lambda: [on_gpu(clip.audio) for clip in clips], num_windows, 1)[0]
    found["gpu_largest_difference"] = _largest(scored, scores["speechmos"])
    return found


def _differences(scores: Scores) -> dict[str, Any]:
    """Compare every way of computing with FP32 in batches, and that with speechmos."""
    exact = np.array(scores["fp32"])
    found: dict[str, Any] = {
        "largest_difference_to_speechmos": _largest(exact, scores["speechmos"])
    }
    for name, of in scores.items():
        if name in ("fp32", "speechmos"):
            continue
        ovrl = np.array(of)
        near = np.abs(ovrl - THRESHOLD) <= (BF16_OVRL_ERROR if name in _ROUNDED else 0)
        settled = np.where(near, exact, ovrl)
        found[name] = {
            "largest_difference": _largest(ovrl, exact),
            "decisions_changed": int(((ovrl > THRESHOLD) != (exact > THRESHOLD)).sum()),
            "scored_again_in_fp32": int(near.sum()),
            "decisions_changed_then": int(((settled > THRESHOLD) != (exact > THRESHOLD)).sum()),
        }
    return found


def _largest(found, expected) -> float:
    common = min(len(found), len(expected))
    return float(np.abs(np.array(found[:common]) - np.array(expected[:common])).max())


def _usual_batch(device: str) -> torch.Tensor:
    """Return the samples of one batch of clips of four windows: float32 [clips, samples]."""
    num_samples = WINDOW_SAMPLES + HOP_SAMPLES * (_USUAL_WINDOWS - 1)
    num_clips = FRAMES_AT_ONCE // 1_344 if device == "cuda" else 1
    drawn = np.random.default_rng(0).normal(0, 0.1, (num_clips, num_samples))
    return torch.from_numpy(drawn.astype(np.float32)).to(device)


def _alone(parts: tuple[Part, Part, Part], device: str, rounds: int) -> float:
    """Measure the network on samples that lie on the device: the bare model."""
    network, samples = BatchedNetwork(parts, device), _usual_batch(device)
    repeats = 8 if device == "cuda" else 1

    def run() -> None:
        with deterministic_inference():
            for _ in range(repeats):
                network.raw_scores(samples, _USUAL_WINDOWS)
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    return median(_speeds(run, repeats * len(samples) * _USUAL_WINDOWS, rounds))


def _kernels(parts: tuple[Part, Part, Part]) -> list[dict[str, Any]]:
    """Return the kernels that take most of a batch's time, in microseconds per window."""
    network, samples = BatchedNetwork(parts, "cuda"), _usual_batch("cuda")
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with deterministic_inference(), torch.profiler.profile(activities=activities) as profile:
        network.raw_scores(samples, _USUAL_WINDOWS)
        torch.cuda.synchronize()
    num_windows = len(samples) * _USUAL_WINDOWS
    kernels = sorted(profile.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    return [
        {"kernel": kernel.key[:120], "calls": kernel.count,
         "us_per_window": round(kernel.self_device_time_total / num_windows, 2)}
        for kernel in kernels[:_SHOWN_KERNELS]
    ]  # fmt: skip


def _stage(clips: list[Clip], options) -> dict[str, Any]:
    """Score FLAC files through the stage, by the number of its threads."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = flac_files(Path(folder), [clip.audio for clip in clips], SCORER_HZ, _FILE_HZ)
        table = pa.concat_tables([files] * options.rounds)
        for precision in SETTINGS if options.device == "cuda" else SETTINGS[:1]:
            found[precision] = {
                cpus: _stage_speed(table, precision, cpus, options.device)
                for cpus in _STAGE_CPUS
                if cpus <= torch.multiprocessing.cpu_count()
            }
    return found


def _stage_speed(table: pa.Table, precision: Precision, cpus: int, device: Any) -> float:
    settings = ScoreConfig(
        provider=device, precision=precision, cpus_per_worker=cpus, gpus_per_worker=device == "cuda"
    )
    transform = ScoreStage(settings, find_model()).open()
    transform(table.slice(0, 8))
    begin = time.perf_counter()
    kept = transform(table).kept
    assert kept.num_rows == table.num_rows, "a file was not scored"
    return round(sum(kept["windows"].to_pylist()) / (time.perf_counter() - begin), 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    add_data_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
