"""How far codes lie from SNAC in FP64: those of koe's engines, beside the package's own in FP32.

    taskset -c 1 python -m benchmarks.codec_distance                 12 clips of the demo
    taskset -c 1 python -m benchmarks.codec_distance --clips 40      and how many entries are used

On the untrained weights, whose codes compete. No result file: the counts are no speed. A code that
differs is judged by its margin: how much closer, in FP64 and after the same codes before it, the
nearest entry is than the one chosen (squared distances on the unit sphere, 0 to 4).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from snac import SNAC
from torch.nn.functional import avg_pool1d, normalize, pad

from benchmarks.clips import add_data_option, recordings
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
    report(clips)
    return 0


def report(clips: Sequence[np.ndarray]) -> None:
    """Print the codes that differ between any two ways, and within one engine."""
    package, _ = untrained_model(0)
    exact = copy.deepcopy(package).double()
    ways: dict[str, list[np.ndarray]] = {
        EXACT: [package_codes(exact, clip) for clip in clips],
        PACKAGE: [package_codes(package, clip) for clip in clips],
    }
    console, batches = Console(), Table("engine", "codes that differ in batches", "of")
    for engine in ENGINES:
        codec = Codec.open(resolve_codec("untrained", engine=engine))
        ways[codec.spec.engine] = [codec.encode([clip])[0] for clip in clips]
        together = [
            codes
            for n in range(0, len(clips), _BATCH)
            for codes in codec.encode(clips[n:][:_BATCH])
        ]
        found = differing(together, ways[codec.spec.engine])
        batches.add_row(codec.spec.engine, str(found), f"{total(together):,}")
    table = Table("one", "the other", "codes that differ", "of", "share")
    for one, other in combinations(ways, 2):
        found, codes = differing(ways[one], ways[other]), total(ways[one])
        table.add_row(one, other, str(found), f"{codes:,}", f"{found / codes:.2%}")
    largest = Table("codes of", "largest margin to the nearest entry in FP64")
    inputs = [latents(exact, clip) for clip in clips]
    for name, codes in ways.items():
        margins = [code_margins(exact, z, c).max() for z, c in zip(inputs, codes, strict=True)]
        largest.add_row(name, f"{max(margins):.1e}")
    console.print(table, batches, largest, used_entries(ways[EXACT]))


def package_codes(model: SNAC, clip: np.ndarray) -> np.ndarray:
    """Encode as the package does, in the model's own precision: uint16 [7 F]."""
    with torch.inference_mode():
        return flatten_codes([b[0].numpy() for b in model.quantizer(latents(model, clip))[1]])


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
        for level, book in zip(exact.quantizer.quantizers, unflatten_codes(codes), strict=True):
            chosen = torch.from_numpy(book.astype(np.int64))
            inputs = level.in_proj(avg_pool1d(residual, level.stride, level.stride))[0].t()
            likeness = normalize(inputs) @ normalize(level.codebook.weight).t()
            own = likeness.gather(1, chosen[:, None])[:, 0]
            margins.append(2 * (likeness.max(1).values - own))
            taken = level.out_proj(level.codebook.weight[chosen].t()[None])
            residual = residual - taken.repeat_interleave(level.stride, -1)
    return torch.cat(margins).numpy()


def differing(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> int:
    return sum(int((a != b).sum()) for a, b in zip(one, other, strict=True))


def total(codes: Sequence[np.ndarray]) -> int:
    return sum(map(len, codes))


def used_entries(codes: Sequence[np.ndarray]) -> str:
    """Say how many entries of each codebook appear."""
    books = zip(*map(unflatten_codes, codes), strict=True)
    counts = [len(np.unique(np.concatenate(book))) for book in books]
    return f"entries used of 4,096 in each codebook: {', '.join(f'{n:,}' for n in counts)}"


if __name__ == "__main__":
    raise SystemExit(main())
