"""SNAC encoding: koe against the snac package, audio-seconds/s on one core.

    taskset -c 1 python -m benchmarks.snac                      untrained weights
    taskset -c 1 python -m benchmarks.snac --weights DIR        the published ones
    python -m benchmarks.snac --device cuda --clips 600         a GPU, a log-normal mix of lengths
    python -m benchmarks.snac --data FOLDER                     recordings of your own

Both sides encode the same real clips with the same weights, each in a process of its own, by turns.
The peer is the package as its README uses it: `SNAC(...).eval()`, weight norm in place, one clip at
a time; torch has one thread in either. Loading and the first clip do not count. The codes of both
are compared with each other, and those of some clips with the package's in FP64.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from snac import SNAC

from benchmarks.clips import add_data_option, real_clips, recordings
from benchmarks.codec_distance import package_codes
from benchmarks.results import run_command, write_result
from koe.errors import ConfigError
from koe.vocabulary import CODEC_HZ, flatten_codes
from stages.clips import load_file
from stages.snac.batches import similar_length_batches
from stages.snac.codec import Codec, resolve_codec
from stages.snac.untrained import untrained_model
from stages.snac.weights import UNTRAINED

SIDES = ("ours", "peer")
_EXACT_CLIPS = 8  # FP64 is slow


def main() -> int:
    options = _options()
    if options.side:
        _encode_side(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder) / "clips.npz"
        write = _write_clips if options.device == "cpu" else _write_mixed_clips
        seconds = write(options.data, options.clips, clips)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for repeat in range(options.repeats):
            for side in SIDES if repeat % 2 else SIDES[::-1]:
                runs[side].append(_run_side(side, clips))
        codes = [dict(np.load(f"{clips}.{side}.npz")) for side in SIDES]
        exact = _exact_codes(options.weights, clips)
    total = sum(len(theirs) for theirs in codes[1].values())
    differing = _differing(*codes)
    judged = {
        "codes": sum(map(len, exact.values())),
        **{side: _differing(exact, found) for side, found in zip(SIDES, codes, strict=True)},
    }
    speeds = {side: [seconds / run["seconds"] for run in runs[side]] for side in SIDES}
    peaks = {side: max(run["peak_mb"] for run in runs[side]) for side in SIDES}
    engine = runs["ours"][0]["engine"]
    path = write_result(
        "snac_cpu" if options.device == "cpu" else "snac_gpu",
        "snac 1.2.1, eager, one clip at a time",
        "audio-seconds/s" + (" per core" if options.device == "cpu" else ""),
        speeds["ours"],
        speeds["peer"],
        engine=engine,
        weights=runs["ours"][0]["label"],
        clips=options.clips,
        audio_seconds=round(seconds, 1),
        codes=total,
        differing_codes=differing,
        differing_from_fp64=judged,
        peak_mb=peaks,
    )
    table = Table("", "audio-seconds/s", "of each repetition", "peak MB")
    for side, label in (("ours", f"koe, {engine}"), ("peer", "snac, eager")):
        each = " ".join(f"{speed:.2f}" for speed in speeds[side])
        table.add_row(label, f"{median(speeds[side]):.2f}", each, str(peaks[side]))
    console = Console()
    console.print(table)
    console.print(
        f"{differing:,} of {total:,} codes differ from snac's. Of {judged['codes']:,} codes that FP64 "
        f"was asked for, it chooses another than koe in {judged['ours']:,} and than snac in "
        f"{judged['peer']:,}."
    )
    console.print(f"{runs['ours'][0]['label']}; {path}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default=UNTRAINED, help="a folder with the published weights")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    add_data_option(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--batch-seconds", type=float, default=60, help="ours, on CUDA")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--clips-file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _write_clips(data: Path, count: int, path: Path) -> float:
    """Write clips spread evenly over the folder, float32 at 24 kHz; return their seconds."""
    files = recordings(data)
    if len(files) < count:
        raise ConfigError(
            f"{count} clips cannot be chosen",
            f"{data} holds {len(files)} recordings",
            "Ask for fewer with --clips, or name another folder with --data.",
        )
    chosen = files[:: len(files) // count][:count]
    clips = {file.stem: load_file(str(file), CODEC_HZ)[0] for file in chosen}
    np.savez(path, **clips)  # pyright: ignore[reportArgumentType]
    return sum(len(audio) for audio in clips.values()) / CODEC_HZ


def _write_mixed_clips(data: Path, count: int, path: Path) -> float:
    """Write clips of a log-normal mix of lengths, float32 at 24 kHz; return their seconds."""
    clips = real_clips(count, CODEC_HZ, data)
    np.savez(path, **{f"{number:05}": clip for number, clip in enumerate(clips)})
    return sum(len(audio) for audio in clips) / CODEC_HZ


def _run_side(side: str, clips: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.snac", *sys.argv[1:]]
    command += ["--side", side, "--clips-file", str(clips)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _encode_side(options: argparse.Namespace) -> None:
    """Encode in this process: codes go to a file, figures to the last line of stdout."""
    torch.set_num_threads(1)
    clips = dict(np.load(options.clips_file))
    open_side = _peer if options.side == "peer" else _ours
    encode, found = open_side(options)
    warm_up = next(iter(clips))
    list(encode({warm_up: clips[warm_up]}))
    start = time.perf_counter()
    codes = dict(encode(clips))
    found["seconds"] = time.perf_counter() - start
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    np.savez(f"{options.clips_file}.{options.side}.npz", **codes)
    print(json.dumps(found))


def _exact_codes(weights: str, clips: Path) -> dict[str, np.ndarray]:
    """Encode the first clips as the package does, in FP64 on the CPU."""
    torch.set_num_threads(1)
    model = _package_model(weights).double()
    with np.load(clips) as found:
        return {clip: package_codes(model, found[clip]) for clip in found.files[:_EXACT_CLIPS]}


def _differing(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> int:
    """Count the codes of `some` clips that are not those of `others`."""
    return sum(int((codes != others[clip]).sum()) for clip, codes in some.items())


def _package_model(weights: str) -> SNAC:
    return untrained_model(0)[0] if weights == UNTRAINED else SNAC.from_pretrained(weights)


def _peer(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    model = _package_model(options.weights)
    model = model.eval().to(options.device)

    def encode(clips: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        with torch.inference_mode():
            for clip, audio in clips.items():
                codebooks = model.encode(torch.from_numpy(audio)[None, None].to(options.device))
                yield clip, flatten_codes([codes[0].cpu().numpy() for codes in codebooks])

    return encode, {}


def _ours(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    spec = resolve_codec(options.weights, device=options.device, engine=options.engine)
    codec = Codec.open(spec)
    batch_samples = int(options.batch_seconds * CODEC_HZ) if options.device == "cuda" else 0

    def encode(clips: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        names = list(clips)
        for batch in similar_length_batches(enumerate(clips.values()), batch_samples):
            encoded = codec.encode([audio for _, audio in batch])
            for (row, _), codes in zip(batch, encoded, strict=True):
                yield names[row], codes

    return encode, {"engine": spec.engine, "label": spec.label}


if __name__ == "__main__":
    run_command(main)
