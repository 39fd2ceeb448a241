"""The codec encodes and decodes as the snac package does, from weights that are what they claim."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from snac import SNAC

from benchmarks.codec_distance import package_codes
from koe.errors import BadRecord, ConfigError, StageError
from koe.vocabulary import unflatten_codes
from stages.snac.architecture import ARCHITECTURE
from stages.snac.codec import Codec, clip_seed, resolve_codec
from stages.snac.untrained import untrained_model
from stages.snac.weights import PUBLISHED_SHA256
from tests.stages.snac.exact import assert_near_ties
from tests.stages.speech import speech_24k, write_snac_weights

LENGTHS = (1, 1000, 2047, 2048, 2049, 4096, 7 * 2048, 30_000)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_snac_weights(tmp_path_factory.mktemp("snac"))


@pytest.fixture(scope="module")
def codec(weights) -> Codec:
    return Codec.open(resolve_codec(str(weights)))


@pytest.fixture(scope="module")
def referee(weights) -> SNAC:
    """The package's own model, loaded by the package, weight norm in place."""
    return SNAC.from_pretrained(str(weights))


@pytest.mark.parametrize("num_samples", LENGTHS)
def test_codes_of_every_length_are_the_nearest_entries(num_samples, codec):
    audio = speech_24k(num_samples)
    (codes,) = codec.encode(audio[None])
    assert codes.dtype == np.uint16
    assert_near_ties(codes, audio)


def test_a_folder_with_the_untrained_weights_gives_their_codes(codec, referee):
    spec = resolve_codec("untrained")
    model, sha256 = untrained_model(0)
    assert sha256 == spec.sha256
    audio = speech_24k(9_000)
    (codes,) = Codec.open(spec).encode([audio])
    np.testing.assert_array_equal(codes, codec.encode([audio])[0])
    np.testing.assert_array_equal(package_codes(referee, audio), package_codes(model, audio))


def test_decoding_equals_the_package_given_the_same_noise(codec, referee):
    (codes,) = codec.encode(speech_24k(6_000)[None])
    before = torch.random.get_rng_state()
    audio = codec.decode(codes, seed=11)
    assert torch.equal(before, torch.random.get_rng_state())
    assert audio.shape == (len(codes) // 7 * 2048,)
    torch.manual_seed(11)
    with torch.inference_mode():
        tensors = [torch.from_numpy(one)[None] for one in unflatten_codes(codes)]
        expected = referee.decode(tensors)[0, 0].numpy()
    # The weights are normalised in FP64 here, and in FP32 at every call there.
    np.testing.assert_allclose(audio, expected, atol=5e-5)
    np.testing.assert_array_equal(audio, codec.decode(codes, seed=11))
    assert not np.array_equal(audio, codec.decode(codes, seed=12))


def test_the_noise_of_a_clip_depends_on_its_id_and_the_seed_only():
    seeds = {clip_seed(clip, seed) for clip in ("a", "b") for seed in (0, 1)}
    assert len(seeds) == 4
    assert clip_seed("a", 0) == clip_seed("a", 0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_weight_norm_is_folded_in(codec):
    assert not any("parametrizations" in name for name, _ in codec._model.named_modules())


def test_untrained_weights_need_no_sha256_and_say_so():
    spec, again = (resolve_codec("untrained", PUBLISHED_SHA256) for _ in range(2))
    assert spec == again
    assert spec.sha256 != PUBLISHED_SHA256
    assert not spec.trained
    assert spec.label == "UNTRAINED (seed 0)"
    assert spec.describe()["trained"] is False
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_folder_is_checked_against_its_sha256(weights):
    expected = hashlib.sha256((weights / "pytorch_model.bin").read_bytes()).hexdigest()
    spec = resolve_codec(str(weights), expected)
    assert spec.trained
    assert spec.sha256 == expected
    with pytest.raises(ConfigError) as caught:
        resolve_codec(str(weights), PUBLISHED_SHA256)
    assert expected in str(caught.value)
    assert PUBLISHED_SHA256 in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sampling_rate", 44_100),
        ("vq_strides", [8, 4, 2, 1]),
        ("codebook_size", 1024),
        ("encoder_rates", [3, 3, 7, 7]),
        ("attn_window_size", 32),
        ("surprise", 1),
    ],
)
def test_another_snac_than_the_24_khz_one_is_refused(weights, tmp_path, key, value):
    (tmp_path / "pytorch_model.bin").symlink_to(weights / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({**ARCHITECTURE, key: value}))
    with pytest.raises(ConfigError, match=r"config\.json is not"):
        resolve_codec(str(tmp_path))


def test_missing_files_are_named_with_what_to_fetch(weights, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        resolve_codec(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE))
    with pytest.raises(ConfigError, match=r"79,488,254 bytes.*snac\.weights: untrained"):
        resolve_codec(str(tmp_path))


class _Touch:
    """Pickles as a call that creates a file, as a hostile checkpoint would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_weights_file_cannot_run_code(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE))
    torch.save({"encoder": _Touch(tmp_path / "owned")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="does not hold the weights"):
        Codec.open(resolve_codec(str(tmp_path)))
    assert not (tmp_path / "owned").exists()


def test_weights_that_changed_since_the_plan_are_refused(weights):
    spec = resolve_codec(str(weights))
    planned = replace(spec, sha256="0" * 64)
    with pytest.raises(ConfigError, match="not those that the run was planned with"):
        Codec.open(planned)


def test_weights_that_cannot_be_downloaded_name_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be downloaded") as caught:
        resolve_codec("hubertsiuzdak/snac_24khz")
    assert PUBLISHED_SHA256 in caught.value.remedy
    assert "snac.weights: untrained" in caught.value.remedy
    with pytest.raises(ConfigError, match="neither a folder"):
        resolve_codec(str(tmp_path / "absent"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_a_missing_gpu_never_becomes_the_cpu(weights):
    with pytest.raises(ConfigError, match=r"snac\.device"):
        Codec.open(resolve_codec(str(weights), device="cuda"))


def test_no_samples_are_a_bad_record_and_a_torch_failure_a_stage_error(codec, monkeypatch):
    with pytest.raises(BadRecord, match="empty_audio"):
        codec.encode(np.empty((1, 0), np.float32))

    def fail(*_):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(torch, "cat", fail)
    with pytest.raises(StageError, match="clip-7") as caught:
        codec.encode(np.zeros((1, 2048), np.float32), clip_id="clip-7")
    assert isinstance(caught.value.__cause__, RuntimeError)
