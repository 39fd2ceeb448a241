"""What a worker computes of a clip on a CPU: as it is, or as if it had an older instruction set.

python -m tests.stages.native.whole avx2
"""

from __future__ import annotations

import hashlib
import sys

import torch

from stages.audio.decode import resample
from stages.dnsmos.scorer import DnsmosScorer, find_model
from stages.native import compiler
from stages.snac.codec import Codec, resolve_codec
from tests.stages.speech import speech_24k


def computed() -> str:
    """Return scores in full, and the hashes of codes and resampled audio."""
    audio = speech_24k(20_000)
    scores = DnsmosScorer(find_model().path).score(resample(audio, 24_000, 16_000), "all")
    codes = Codec.open(resolve_codec("untrained")).encode([audio])[0]
    arrays = (codes, resample(audio, 24_000, 44_100))
    hashes = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    return f"{scores} {' '.join(hashes)}"


if __name__ == "__main__":
    compiler.target = lambda: sys.argv[1]
    print(torch.backends.cpu.get_cpu_capability(), computed())
