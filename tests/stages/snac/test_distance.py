"""Codes that compete: as near to FP64 as the package's own, equal within one engine."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from benchmarks.codec_distance import (
    code_margins,
    differing,
    latents,
    package_codes,
    total,
    used_entries,
)
from koe.errors import ConfigError
from koe.vocabulary import CODEC_HZ, flatten_codes
from stages.clips import load_file
from stages.native.compiler import Unavailable
from stages.snac.codec import Codec, resolve_codec
from stages.snac.encoder import TiledEncoder, Tiles
from stages.snac.kernels import TorchKernels, native_kernels
from stages.snac.untrained import untrained_model
from tests.real_data import UTTERANCES

# Of FP32 with these weights; squared distances between neighbouring entries are about 0.1.
NEAR_TIE = 2e-3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in a worker; and several wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Six real clips of several lengths."""
    paths = sorted(path for path in UTTERANCES.iterdir() if path.suffix in (".flac", ".opus"))
    audios = [load_file(str(path), CODEC_HZ)[0] for path in paths[:6]]
    return [audio[12_000 : 12_000 + 7 * 2_048 + 1_700 * n] for n, audio in enumerate(audios)]


@pytest.fixture(scope="module")
def exact():
    return copy.deepcopy(untrained_model(0)[0]).double().eval()


@pytest.fixture(scope="module")
def exact_latents(exact, clips) -> list[torch.Tensor]:
    return [latents(exact, clip) for clip in clips]


@pytest.fixture(scope="module")
def exact_codes(exact, exact_latents) -> list[np.ndarray]:
    with torch.inference_mode():
        books = [exact.quantizer(one)[1] for one in exact_latents]
    return [flatten_codes([book[0].numpy() for book in one]) for one in books]


@pytest.fixture(scope="module")
def package_distance(clips, exact_codes) -> int:
    """How many codes of the package in FP32 are not those of FP64."""
    package = untrained_model(0)[0]
    return differing([package_codes(package, clip) for clip in clips], exact_codes)


@pytest.fixture(scope="module", params=["native", "tiled", "eager"])
def codec(request) -> Codec:
    try:
        return Codec.open(resolve_codec("untrained", engine=request.param))
    except ConfigError as error:
        pytest.skip(str(error))


def test_codes_are_as_near_to_fp64_as_the_packages(
    codec, clips, exact, exact_latents, exact_codes, package_distance
):
    codes = [codec.encode([clip])[0] for clip in clips]
    assert differing(codes, exact_codes) <= max(3 * package_distance, 0.03 * total(codes))
    for expected, found in zip(exact_latents, codes, strict=True):
        assert code_margins(exact, expected, found).max() < NEAR_TIE


def test_the_bound_tells_near_ties_from_errors(exact, exact_latents, exact_codes):
    assert code_margins(exact, exact_latents[0], exact_codes[0]).max() < 1e-9
    wrong = exact_codes[0].copy()
    wrong[14] = (wrong[14] + 1) % 4096
    assert code_margins(exact, exact_latents[0], wrong).max() > 10 * NEAR_TIE


def test_the_codes_under_test_compete(exact_codes):
    for book in range(3):
        slots = {0: [0], 1: [1, 4], 2: [2, 3, 5, 6]}[book]
        codes = np.concatenate([codes.reshape(-1, 7)[:, slots].ravel() for codes in exact_codes])
        assert len(np.unique(codes)) > 0.6 * len(codes)
    assert "entries used of 4,096" in used_entries(exact_codes)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_batch_of_any_clips_has_the_codes_of_each_alone(codec, clips, order):
    alone = [codec.encode([clip])[0] for clip in clips]
    assert differing(codec.encode(clips[order]), alone[order]) == 0
    assert differing(codec.encode(clips[1:4]), alone[1:4]) == 0


@pytest.fixture(params=["native", "tiled"])
def kernels(request):
    if request.param == "tiled":
        return TorchKernels()
    try:
        return native_kernels()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("tiles", [Tiles(values=40_000), Tiles(latents=30), Tiles(values=9_000)])
def test_other_tiles_differ_by_near_ties_only(kernels, tiles, clips, exact, exact_latents):
    """Sizes of products decide how they are summed, so not even one engine is equal across tiles."""
    encoder = TiledEncoder(untrained_model(0)[0].eval(), kernels, tiles)
    with torch.inference_mode():
        books = encoder.encode(torch.from_numpy(clips[0]))
    codes = flatten_codes([book.numpy() for book in books])
    assert code_margins(exact, exact_latents[0], codes).max() < NEAR_TIE
