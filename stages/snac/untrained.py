"""Seeded weights for trials: their codes carry no speech, but compete as trained ones do.

Weights that are only drawn give latents that hardly move: on speech 97 % of the first codebook's
codes are one entry, and no error shows. Here each convolution is scaled so that its outputs on real
speech have mean 0 and variance 1 in every channel, the inputs of the quantisers are whitened, and
the codebooks are drawn from the residuals, level by level, so that thousands of entries are in use.

All of it is computed in FP64 from uniform draws, and every scale, offset, projection and codebook
is rounded to a multiple of 2^-14. CPUs and libraries that sum in another order differ by some
1e-14, so they give the same weights unless a value lies that close to the middle between two
multiples (about one seed in ten thousand). Such a difference is never silent: a run records the
SHA-256 of its weights, and each worker checks its own.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from snac import SNAC
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from koe.atomic import atomically
from koe.cache import CACHE_VARIABLE, cache_folder
from koe.vocabulary import FRAME_SAMPLES
from stages.snac.architecture import ARCHITECTURE
from stages.snac.encoder import TiledEncoder
from stages.snac.kernels import TorchKernels

RECIPE = 1  # of the weights; part of their identity and of the cached file's name

_SPEECH = Path(__file__).with_name("calibration") / "speech.flac"
_PIECES = 12  # of equal length, one after the other
_SCALING_FRAMES = 3  # of each piece: enough for means and variances
_DECODER_PIECES = 6  # the decoder costs three times what the encoder does
_STEP = 2.0**-14
_SPREAD = 0.25  # of codebook entries around a residual, in its standard deviations
_SHA256_DIGITS = 64

_LOG = logging.getLogger(__name__)
_unwritten: dict[int, np.ndarray] = {}  # weights by seed, where no file can hold them


def untrained_model(seed: int) -> tuple[SNAC, str]:
    """Return the model, its weight norm in place, and the SHA-256 of its weights."""
    weights = untrained_weights(seed)
    model = SNAC(**ARCHITECTURE)
    vector_to_parameters(torch.from_numpy(weights), model.parameters())
    return model, sha256_of(weights)


def untrained_weights(seed: int) -> np.ndarray:
    """Return all parameters of the model in its own order, float32 [parameters].

    They are computed once, in some ten seconds, and kept as a file of 79 MB in the cache folder; in
    memory where that cannot be written. Processes that start together may each compute them: the
    file appears complete, and any of them is the same.
    """
    path = cache_file(seed)
    weights = _read(path)
    if weights is None:
        weights = _unwritten.get(seed)
    if weights is None:
        weights = parameters_to_vector(calibrated_model(seed).parameters()).detach().numpy()
        try:
            with atomically(path) as file:
                file.write(sha256_of(weights).encode())
                file.write(weights.data)
        except OSError as error:
            _LOG.warning(
                "The untrained codec's weights cannot be kept in %s (%s): every process computes "
                "them anew. Set %s to a folder that can be written.",
                path.parent,
                error.strerror or error,
                CACHE_VARIABLE,
            )
            _unwritten[seed] = weights
    return weights


def sha256_of(weights: np.ndarray) -> str:
    return hashlib.sha256(weights.data).hexdigest()


def cache_file(seed: int) -> Path:
    """Say where the weights of a seed are kept."""
    return cache_folder() / "snac" / f"untrained-recipe{RECIPE}-seed{seed}.bin"


def _read(path: Path) -> np.ndarray | None:
    """Return the weights of a file, or None where there is none that agrees with its hash."""
    try:
        with path.open("rb") as file:
            sha256 = file.read(_SHA256_DIGITS).decode("ascii", "replace")
            weights = np.fromfile(file, np.float32)
    except OSError:
        return None
    return weights if sha256_of(weights) == sha256 else None


def calibrated_model(seed: int) -> SNAC:
    """Compute the model of a seed: float32, its weight norm in place."""
    draws = np.random.default_rng(seed % 2**64)
    speech = calibration_speech()
    with torch.no_grad(), _one_thread():
        model = SNAC(**ARCHITECTURE).double().eval()
        for layer in _convolutions(model):
            layer.weight = _uniform(draws, *layer.weight.shape)
            if layer.bias is not None:
                layer.bias.zero_()
        _scale(model.encoder, speech[:, :, : _SCALING_FRAMES * FRAME_SAMPLES])
        encoder = TiledEncoder(model, TorchKernels())
        latents = torch.cat([encoder.latents(piece[0]) for piece in speech])
        quantized = _fit_quantizers(model.quantizer, latents, draws)
        values = _SCALING_FRAMES * FRAME_SAMPLES * latents.shape[2] // speech.shape[2]
        _scale(model.decoder, quantized[:_DECODER_PIECES, :, :values])
        _amplify(list(_convolutions(model.decoder))[-1], _rounded(speech.std()))
        return model.float()


def calibration_speech() -> Tensor:
    """Read the clips that the weights are scaled on: float64 [pieces, 1, samples], 24 kHz."""
    speech, _ = soundfile.read(_SPEECH, dtype="float64")
    return torch.from_numpy(speech).reshape(_PIECES, 1, -1)


def _scale(network: nn.Module, inputs: Tensor) -> None:
    """Give the outputs of every convolution mean 0 and variance 1 in each channel on `inputs`.

    In the order in which they run, so that each sees what it will see. The decoder's noise is left
    out: it would be drawn otherwise on another CPU.
    """
    hooks = [layer.register_forward_hook(_normalize) for layer in _convolutions(network)]
    hooks += [
        module.register_forward_hook(lambda _, inputs, output: inputs[0])
        for module in network.modules()
        if type(module).__name__ == "NoiseBlock"
    ]
    with torch.random.fork_rng(devices=[]):
        network(inputs)
    for hook in hooks:
        hook.remove()


def _normalize(layer: Any, inputs: object, output: Tensor) -> Tensor:
    """Scale and shift a convolution so that `output` is normalised; return it so."""
    scale = _rounded(1 / output.std((0, 2)))
    _amplify(layer, scale)
    output = output * scale[:, None]
    if layer.bias is None:
        return output
    shift = _rounded(output.mean((0, 2)))
    layer.bias -= shift
    return output - shift[:, None]


def _amplify(layer: Any, scale: Tensor) -> None:
    """Multiply a convolution's outputs by `scale`, a number or one for each channel."""
    outputs = 1 if isinstance(layer, nn.ConvTranspose1d) else 0
    shape = [1, 1, 1]
    shape[outputs] = -1
    layer.weight = layer.weight * scale.reshape(shape)
    if layer.bias is not None:
        layer.bias *= scale


def _fit_quantizers(quantizer: Any, latents: Tensor, draws: np.random.Generator) -> Tensor:
    """Fit each level to what the levels before leave of `latents` [pieces, channels, values].

    Its input is whitened, its codebook drawn from what comes in, with some spread, and its output
    is the least-squares estimate of the latents. Returns the sum of all levels.
    """
    residual = latents
    for level in quantizer.quantizers:
        windows = avg_pool1d(
            residual, level.stride, 1
        )  # at every place, not only at multiples of the stride
        rows = windows.transpose(1, 2).flatten(0, 1)
        mean = _rounded(rows.mean(0))
        rows = rows - mean
        drawn = rows @ level.in_proj.weight[:, :, 0].t()
        factor = torch.linalg.cholesky(drawn.t() @ drawn / len(rows))
        inverse = torch.linalg.solve_triangular(
            factor, torch.eye(len(factor)).double(), upper=False
        )
        weight = _rounded(inverse @ level.in_proj.weight[:, :, 0])
        inputs = rows @ weight.t()
        level.in_proj.weight = weight[:, :, None]
        level.in_proj.bias.copy_(-weight @ mean)
        chosen = torch.from_numpy(draws.integers(len(rows), size=level.codebook_size))
        spread = _SPREAD * 3**0.5 * _uniform(draws, level.codebook_size, level.codebook_dim)
        level.codebook.weight.copy_(_rounded(inputs[chosen] + spread))
        level.out_proj.weight = _rounded(rows.t() @ inputs / len(rows))[:, :, None]
        level.out_proj.bias.copy_(mean)
        residual = residual - level(residual)[0]
    return latents - residual


def _convolutions(network: nn.Module) -> Iterator[Any]:
    kinds = (nn.Conv1d, nn.ConvTranspose1d)
    return (module for module in network.modules() if isinstance(module, kinds))


def _uniform(draws: np.random.Generator, *shape: int) -> Tensor:
    """Draw float64 between -1 and 1, with as many bits as a float32 holds."""
    return torch.from_numpy(draws.random(shape, np.float32).astype(np.float64) * 2 - 1)


def _rounded(values: Tensor) -> Tensor:
    return torch.round(values / _STEP) * _STEP


@contextmanager
def _one_thread() -> Iterator[None]:
    """Hold torch to one thread: several wait for each other on a machine with other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
