"""How far codes lie from SNAC in FP64: those of koe's engines, beside the package's own in FP32.

    taskset -c 1 python -m benchmarks.codec_distance                 12 clips of the demo
    taskset -c 1 python -m benchmarks.codec_distance --clips 40      and how many entries are used

On the untrained weights, whose codes compete. A code that differs is judged by its margin: how much
closer, in FP64 and after the same codes before it, the nearest entry is than the one chosen
(squared distances on the unit sphere, 0 to 4).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from rich.console import Console
from snac import SNAC
from torch.nn.functional import avg_pool1d, normalize, pad

from benchmarks.clips import add_data_option, recordings
from benchmarks.results import run_command, write_figures
from koe.vocabulary import CODEC_HZ, FRAME_SAMPLES, flatten_codes, unflatten_codes
from stages.clips import load_file
from stages.snac.codec import Codec, resolve_codec
from stages.snac.untrained import untrained_model

ENGINES = ("native", "tiled", "eager")
EXACT, PACKAGE = "package FP64", "package FP32"
_BATCH = 4


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=12)
    add_data_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = recordings(options.data)
    chosen = files[:: max(1, len(files) // options.clips)][: options.clips]
    clips = [load_file(str(file), CODEC_HZ)[0] for file in chosen]
    figures = measure(clips)
    console = Console()
    console.print_json(data=figures)
    console.print(write_figures("codec_distance", **figures))
    return 0


def measure(clips: Sequence[np.ndarray]) -> dict[str, Any]:
    """Count the codes that differ between any two ways, and within one engine in batches."""
    package, _ = untrained_model(0)
    exact = copy.deepcopy(package).double()
    exact_latents = [latents(exact, clip) for clip in clips]
    ways: dict[str, list[np.ndarray]] = {
        EXACT: [quantized(exact, values) for values in exact_latents],
        PACKAGE: [package_codes(package, clip) for clip in clips],
    }
    in_batches: dict[str, int] = {}
    for engine in ENGINES:
        codec = Codec.open(resolve_codec("untrained", engine=engine))
        name = codec.spec.engine
        ways[name] = [codec.encode([clip])[0] for clip in clips]
        groups = [codec.encode(clips[first:][:_BATCH]) for first in range(0, len(clips), _BATCH)]
        in_batches[name] = differing([codes for group in groups for codes in group], ways[name])
    margins = {
        name: max(
            float(code_margins(exact, values, found).max())
            for values, found in zip(exact_latents, codes, strict=True)
        )
        for name, codes in ways.items()
    }
    return {
        "clips": len(clips),
        "audio_seconds": round(sum(map(len, clips)) / CODEC_HZ, 1),
        "codes": sum(map(len, ways[EXACT])),
        "entries_used": entries_used(ways[EXACT]),
        "differing": {
            f"{one} / {other}": differing(ways[one], ways[other])
            for one, other in combinations(ways, 2)
        },
        f"differing_in_batches_of_{_BATCH}": in_batches,
        "largest_margin": {name: float(f"{margin:.1e}") for name, margin in margins.items()},
    }


def package_codes(model: SNAC, clip: np.ndarray) -> np.ndarray:
    """Encode as the package does, in the model's own precision: uint16 [7 F]."""
    return quantized(model, latents(model, clip))


def quantized(model: SNAC, values: torch.Tensor) -> np.ndarray:
    """Choose codes for latents [1, channels, 4 F] as the package does: uint16 [7 F]."""
    with torch.inference_mode():
        return flatten_codes([codebook[0].numpy() for codebook in model.quantizer(values)[1]])


def latents(model: SNAC, clip: np.ndarray) -> torch.Tensor:
    """Return what the package quantises, in the model's own precision: [1, channels, 4 F]."""
    audio = pad(torch.from_numpy(clip), (0, -len(clip) % FRAME_SAMPLES))
    with torch.inference_mode():
        return model.eval().encoder(audio[None, None].to(next(model.parameters()).dtype))


def code_margins(exact: SNAC, exact_latents: torch.Tensor, codes: np.ndarray) -> np.ndarray:
    """Return for each code how much nearer the nearest entry is, in FP64: float64 [7 F].

    Each level is judged on what the codes given leave of the latents, so that a code that differs
    only because one before it does counts as what it is: exact.
    """
    margins, residual = [], exact_latents
    with torch.inference_mode():
        for level, codes_of_level in zip(
            exact.quantizer.quantizers, unflatten_codes(codes), strict=True
        ):
            chosen = torch.from_numpy(codes_of_level.astype(np.int64))
            inputs = level.in_proj(avg_pool1d(residual, level.stride, level.stride))[0].t()
            likeness = normalize(inputs) @ normalize(level.codebook.weight).t()
            own = likeness.gather(1, chosen[:, None])[:, 0]
            margins.append(2 * (likeness.max(1).values - own))
            taken = level.out_proj(level.codebook.weight[chosen].t()[None])
            residual = residual - taken.repeat_interleave(level.stride, -1)
    return torch.cat(margins).numpy()


def differing(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> int:
    return sum(int((a != b).sum()) for a, b in zip(one, other, strict=True))


def entries_used(codes: Sequence[np.ndarray]) -> list[int]:
    """Count the different entries that appear of each codebook."""
    codebooks = zip(*map(unflatten_codes, codes), strict=True)
    return [len(np.unique(np.concatenate(codebook))) for codebook in codebooks]


if __name__ == "__main__":
    run_command(main)
