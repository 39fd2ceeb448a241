"""The untrained weights: the same everywhere, kept in a file that is checked, and speech moves them."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pytest
import torch

from stages.snac import untrained
from stages.snac.codec import Codec, resolve_codec
from stages.snac.untrained import cache_file, calibrated_model, calibration_speech

# Raise RECIPE with it: weights of another recipe must not be found under this one's name.
SHA256 = "e065ba08bcef6c5e85ac12e3d171d5bb3b297fc27b0e1f8b87957122aa1c1bfb"


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """An empty cache, and a calibration that takes no time and counts its calls."""
    calls = []

    def small(seed: int) -> torch.nn.Module:
        calls.append(seed)
        layer = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(layer.weight, seed)
        torch.nn.init.zeros_(layer.bias)
        return layer

    monkeypatch.setenv("KOE_CACHE", str(tmp_path))
    monkeypatch.setattr(untrained, "calibrated_model", small)
    monkeypatch.setattr(untrained, "_unwritten", {})
    return calls


def test_the_recipe_gives_the_recorded_weights():
    vector = torch.nn.utils.parameters_to_vector(calibrated_model(0).parameters())
    assert hashlib.sha256(vector.detach().numpy()).hexdigest() == SHA256
    assert untrained.RECIPE == 1
    assert resolve_codec("untrained").sha256 == SHA256


def test_weights_are_computed_once_and_read_again(quick):
    first = untrained.untrained_weights(5)
    np.testing.assert_array_equal(untrained.untrained_weights(5), first)
    assert quick == [5]
    assert [path.name for path in cache_file(5).parent.iterdir()] == [cache_file(5).name]
    assert untrained.untrained_weights(6)[0] == 6  # of another seed
    codecs = [resolve_codec("untrained", seed=seed) for seed in (5, 6)]
    assert codecs[0].sha256 != codecs[1].sha256


@pytest.mark.parametrize("damage", [b"", b"short", b"0" * 64 + bytes(32)])
def test_a_damaged_file_is_computed_anew(quick, damage):
    first = untrained.untrained_weights(5)
    cache_file(5).write_bytes(damage)
    np.testing.assert_array_equal(untrained.untrained_weights(5), first)
    assert quick == [5, 5]
    untrained.untrained_weights(5)
    assert quick == [5, 5]


def test_a_cache_that_cannot_be_written_is_named_and_memory_serves(
    quick, monkeypatch, tmp_path, caplog
):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KOE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        first = untrained.untrained_weights(5)
    assert "KOE_CACHE" in caplog.text
    np.testing.assert_array_equal(untrained.untrained_weights(5), first)
    assert quick == [5]


def test_the_cache_lies_where_the_variables_say(monkeypatch, tmp_path):
    monkeypatch.delenv("KOE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file(0).is_relative_to(tmp_path / "koe")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_file(0).is_relative_to(tmp_path / "home/.cache/koe")


def test_every_convolution_is_normalised_on_speech():
    """Up to the edges of the pieces, which the weights saw elsewhere."""
    model, _ = untrained.untrained_model(0)
    outputs = []
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.inference_mode():
        model.encoder(calibration_speech()[:, :, : 3 * 2048].float())
    assert len(outputs) == 30
    for output in outputs:
        assert output.mean((0, 2)).abs().max() < 1e-2
        assert (output.std((0, 2)) - 1).abs().max() < 1e-2


def test_reconstructions_have_the_level_of_speech():
    speech = calibration_speech()[0, 0].float().numpy()
    codec = Codec.open(resolve_codec("untrained"))
    decoded = codec.decode(codec.encode([speech])[0], seed=1)
    assert 0.01 < decoded.std() < 0.5
    assert np.abs(decoded).max() < 1
