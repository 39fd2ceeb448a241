"""Codes that compete: as near to FP64 as the package's own, equal within one engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.codec_distance import (
    code_margins,
    differing,
    entries_used,
    package_codes,
    quantized,
)
from koe.errors import ConfigError
from koe.vocabulary import CODEC_HZ
from stages.clips import load_file
from stages.snac.codec import Codec, resolve_codec
from stages.snac.untrained import untrained_model
from tests.real_data import UTTERANCES
from tests.stages.snac.exact import NEAR_TIE, assert_near_ties, exact_latents, exact_model


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
def exact_codes(clips) -> list[np.ndarray]:
    return [quantized(exact_model(), exact_latents(clip)) for clip in clips]


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


@pytest.fixture(scope="module")
def alone(codec, clips) -> list[np.ndarray]:
    return [codec.encode([clip])[0] for clip in clips]


def test_codes_are_as_near_to_fp64_as_the_packages(alone, clips, exact_codes, package_distance):
    num_codes = sum(map(len, exact_codes))
    assert differing(alone, exact_codes) <= max(3 * package_distance, 0.005 * num_codes)
    for clip, codes in zip(clips, alone, strict=True):
        assert_near_ties(codes, clip)


def test_the_bound_tells_near_ties_from_errors(clips, exact_codes):
    latents = exact_latents(clips[0])
    assert code_margins(exact_model(), latents, exact_codes[0]).max() < 1e-9
    wrong = exact_codes[0].copy()
    wrong[14] = (wrong[14] + 1) % 4096
    assert code_margins(exact_model(), latents, wrong).max() > 100 * NEAR_TIE


def test_the_codes_under_test_compete(exact_codes):
    frames = sum(map(len, exact_codes)) // 7
    for used, rows in zip(entries_used(exact_codes), (frames, 2 * frames, 4 * frames), strict=True):
        assert used > 0.6 * rows


def test_a_batch_of_any_clips_has_the_codes_of_each_alone(codec, clips, alone):
    assert differing(codec.encode(clips[::-1]), alone[::-1]) == 0
    assert differing(codec.encode(clips[1:4]), alone[1:4]) == 0
