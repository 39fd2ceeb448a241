"""DNSMOS P.835: koe against speechmos, windows per second on one core.

    taskset -c 1 python -m benchmarks.dnsmos [--clips 40] [--repeats 3]
    python -m benchmarks.dnsmos --provider cuda      a GPU; speechmos stays on all CPU cores
    python -m benchmarks.dnsmos --data FOLDER        recordings of your own

Every side scores the same real clips (16 kHz, a log-normal mix of lengths) in a process of its own,
by turns; loading and a first clip do not count. The peer is `speechmos.dnsmos.run`, once as it is
and once without its P.808 score, which koe leaves out too: the ratio is to the latter. koe scores
as configured by default (FP32, compiled where there is a compiler), in onnxruntime alone, and, where
this CPU has BF16, in BF16; clips near the threshold are then scored again in FP32.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.clips import add_data_option, real_clips
from benchmarks.results import run_command, write_result
from koe.errors import ConfigError
from stages.dnsmos.engines import ovrl_error, require_precision, resolve_engine
from stages.dnsmos.onnx_session import open_session
from stages.dnsmos.scorer import DnsmosScorer, find_model, window_starts

THRESHOLD = 2.5
_GPU_ROUNDS = 20  # through the clips, which are a matter of milliseconds there
PEER, FULL_PEER = "speechmos without P.808", "speechmos"
FP32, PLAIN, BF16 = "koe", "koe, onnxruntime", "koe, bf16"


def main() -> int:
    options = _options()
    if options.side:
        _score_side(options)
        return 0
    plain = [PLAIN] if options.provider == "cpu" else []
    sides = [PEER, FULL_PEER, FP32, *plain, *([BF16] if _has_bf16(options.provider) else [])]
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder) / "clips.npz"
        audios = real_clips(options.clips, 16_000, options.data)
        np.savez(clips, *audios)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for repeat in range(options.repeats):
            for side in sides if repeat % 2 else sides[::-1]:
                runs[side].append(_run_side(side, clips, options.provider))
                print(f"{side}: {runs[side][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    num_windows = sum(len(window_starts(len(audio), "reference")) for audio in audios)
    _report(runs, num_windows, sum(map(len, audios)) / 16_000, options)
    return 0


def _report(runs: dict[str, list[dict[str, Any]]], num_windows: int, seconds: float, options):
    speeds = {side: [num_windows / run["seconds"] for run in of] for side, of in runs.items()}
    scores = {side: np.array(of[0]["scores"]) for side, of in runs.items()}
    decided = {side: scores[side][:, 2] > THRESHOLD for side in runs}
    ours = [side for side in runs if side not in (PEER, FULL_PEER)]
    found = {
        "engine": resolve_engine("auto", options.provider, "fp32"),
        "speeds": {side: round(median(of), 4) for side, of in speeds.items()},
        "largest_difference": {
            side: float(np.abs(scores[side] - scores[FULL_PEER]).max()) for side in ours
        },
        "flipped_decisions": {
            side: int((decided[side] != decided[FULL_PEER]).sum()) for side in ours
        },
        "kept": int(decided[FULL_PEER].sum()),
        "scored_again": {side: runs[side][0]["scored_again"] for side in ours},
        "clips": options.clips,
        "windows": num_windows,
        "audio_seconds": round(seconds, 1),
        "peak_mb": {side: max(run["peak_mb"] for run in of) for side, of in runs.items()},
    }
    name = "dnsmos_cpu" if options.provider == "cpu" else "dnsmos_gpu"
    unit = "windows per second" + (" per core" if options.provider == "cpu" else "")
    path = write_result(name, PEER, unit, speeds[FP32], speeds[PEER], **found)
    table = Table("", "windows / s", f"ratio to {PEER}", "peak MB")
    for side, of in speeds.items():
        ratio = median(a / b for a, b in zip(of, speeds[PEER], strict=True))
        peak = str(found["peak_mb"][side])
        table.add_row(side, f"{median(of):.3f}", f"{ratio:.2f}", peak)
    console = Console()
    console.print(table)
    console.print(json.dumps({k: found[k] for k in found if k not in ("speeds", "peak_mb")}))
    console.print(f"wrote {path.name}")


def _run_side(side: str, clips: Path, provider: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.dnsmos", "--side", side]
    command += ["--clip-file", str(clips), "--provider", provider]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _score_side(options: argparse.Namespace) -> None:
    with np.load(options.clip_file) as stored:
        audios = [stored[name] for name in stored.files]
    score = _side(options.side, options.provider)
    score(audios[0][: 16_000 * 2])
    rounds = 1
    if options.provider == "cuda" and options.side not in (PEER, FULL_PEER):
        rounds = _GPU_ROUNDS
        for audio in audios:  # each length once: kernels are chosen and memory is taken
            score(audio)
    again = 0
    started = time.perf_counter()
    for _ in range(rounds):
        scores = []
        for audio in audios:
            values, twice = score(audio)
            scores.append(values)
            again += twice
    seconds = (time.perf_counter() - started) / rounds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        json.dumps(
            {"seconds": seconds, "scores": scores, "scored_again": again // rounds, "peak_mb": peak}
        )
    )


def _side(side: str, provider: Any) -> Callable[[np.ndarray], tuple[list[float], bool]]:
    if side in (PEER, FULL_PEER):
        return speechmos(with_p808=side == FULL_PEER)
    engine = "onnxruntime" if side == PLAIN else "auto"
    exact = DnsmosScorer(find_model().path, provider, engine=engine)
    rough = DnsmosScorer(find_model().path, provider, precision="bf16") if side == BF16 else exact
    error = ovrl_error("bf16", resolve_engine("auto", provider, "bf16")) if side == BF16 else 0.0

    def score(audio: np.ndarray) -> tuple[list[float], bool]:
        found = rough.score(audio, "reference")
        near = rough is not exact and abs(found.ovrl - THRESHOLD) <= error
        if near:
            found = exact.score(audio, "reference")
        return [found.sig, found.bak, found.ovrl], near

    return score


def speechmos(
    with_p808: bool, on_gpu: bool = False
) -> Callable[[np.ndarray], tuple[list[float], bool]]:
    """Load the peer. Raises: ConfigError when `on_gpu` cannot be."""
    from speechmos import dnsmos

    dnsmos.run(np.zeros(1600, np.float32) + 1e-3, 16_000)  # loads the models
    assert dnsmos.dnsmos is not None
    if on_gpu:
        model = Path(find_model().path).read_bytes()
        dnsmos.dnsmos.onnx_sess = open_session(model, "cuda", "sig_bak_ovr.onnx")
    if not with_p808:
        dnsmos.dnsmos.audio_melspec = lambda audio: np.zeros((1, 1), np.float32)
        dnsmos.dnsmos.p808_onnx_sess = _NoP808()

    def score(audio: np.ndarray) -> tuple[list[float], bool]:
        found: Any = dnsmos.run(audio, 16_000)
        return [float(found[f"{name}_mos"]) for name in ("sig", "bak", "ovrl")], False

    return score


class _NoP808:
    def run(self, outputs: Any, feeds: Any) -> list[np.ndarray]:
        return [np.ones((1, 1), np.float32)]


def _has_bf16(provider: Any) -> bool:
    try:
        require_precision("bf16", provider)
    except ConfigError:
        return False
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--provider", choices=["cpu", "cuda"], default="cpu")
    add_data_option(parser)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--clip-file", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
