"""The SNAC 24 kHz codec: which weights, checked how, and clips to codes and back.

Source: the package snac 1.2.1 (`snac/snac.py`) and hubertsiuzdak/snac_24khz (`config.json`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from snac import SNAC
from torch.nn.utils import parametrize

from koe.errors import BadRecord, ConfigError
from koe.memory import keep_memory
from koe.vocabulary import (
    CODEBOOK_SIZE,
    CODEC_HZ,
    FRAME_SAMPLES,
    flatten_codes,
    unflatten_codes,
)
from stages.settings import CodecEngine, Device
from stages.snac.engines import guarded, open_engine

UNTRAINED = "untrained"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "pytorch_model.bin"
PUBLISHED_SHA256 = "4b8164cc6606bfa627f1a784734c1e539891518f1191ed9194fe1e3b9b4bff40"
PUBLISHED_BYTES = 79_488_254

ARCHITECTURE: dict[str, Any] = {
    "sampling_rate": CODEC_HZ,
    "encoder_dim": 48,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": CODEBOOK_SIZE,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}

_REMEDY = (
    f"Put {CONFIG_FILE} and {WEIGHTS_FILE} ({PUBLISHED_BYTES:,} bytes, sha256 "
    f"{PUBLISHED_SHA256}) of hubertsiuzdak/snac_24khz into a folder and set "
    "`snac.weights: /that/folder`, or set `snac.weights: untrained` for a trial whose codes "
    "carry no speech."
)


@dataclass(frozen=True)
class CodecSpec:
    """Resolved weights, the same for every worker of a run. Picklable.

    `weights` is `untrained` or a folder, `sha256` (hex) that of the weights file or, untrained,
    of the seeded state; `seed` is of the untrained weights and of the decoder's noise. `engine`
    says how a worker encodes (see `stages/snac/engines.py`), which does not change the codes.
    """

    weights: str
    sha256: str
    seed: int = 0
    device: Device = "cpu"
    engine: CodecEngine = "auto"

    @property
    def trained(self) -> bool:
        return self.weights != UNTRAINED

    @property
    def label(self) -> str:
        """Return the short name that stats, index and shards carry."""
        if not self.trained:
            return f"UNTRAINED (seed {self.seed})"
        return f"snac_24khz sha256:{self.sha256[:8]}"

    def describe(self) -> dict[str, Any]:
        """Return what decides the codes, and the label, for content and metadata."""
        return {
            "label": self.label,
            "trained": self.trained,
            "sha256": self.sha256,
            "device": self.device,
        }


def resolve_codec(
    weights: str,
    sha256: str | None = None,
    seed: int = 0,
    device: Device = "cpu",
    engine: CodecEngine = "auto",
) -> CodecSpec:
    """Find and check the weights once, before any work.

    `weights` is `untrained` (then `sha256` does not apply), a folder, or a hub id; `sha256`
    None accepts any weights file.
    Raises: ConfigError with a remedy when they are absent, differ, or are not SNAC 24 kHz.
    """
    if weights == UNTRAINED:
        return CodecSpec(UNTRAINED, _state_sha256(_untrained_model(seed)), seed, device, engine)
    folder = Path(weights)
    if not folder.is_dir():
        folder = _download(weights)
    _read_architecture(folder)
    found = _file_sha256(folder / WEIGHTS_FILE)
    if sha256 and found != sha256.lower():
        raise ConfigError(
            f"{folder / WEIGHTS_FILE} is not the expected file",
            f"its sha256 is {found}, but snac.sha256 is {sha256}",
            "Download the file again, or set snac.sha256 to null to accept any weights.",
        )
    return CodecSpec(str(folder), found, seed, device, engine)


def clip_seed(clip_id: str, seed: int) -> int:
    """Return the seed of a clip's decoder noise: the same on any worker, in any order."""
    digest = hashlib.sha256(f"{seed}:{clip_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits without wrapping


def padded_samples(num_samples: int) -> int:
    """Return the length to which SNAC pads a clip on the right: whole frames of 2048."""
    return math.ceil(num_samples / FRAME_SAMPLES) * FRAME_SAMPLES


class Codec:
    """A SNAC model ready to run. Not picklable: open one per worker from a `CodecSpec`.

    `engine` is the one that encodes, never `auto`.
    """

    def __init__(self, spec: CodecSpec, model: SNAC) -> None:
        self.spec = spec
        self._model = model
        self._device = torch.device(spec.device)
        self.engine, self._encode = open_engine(model, spec.engine, spec.device)

    @classmethod
    def open(cls, spec: CodecSpec) -> Codec:
        """Build the model, and hold torch to one thread in this process.

        More workers, not threads, use more cores: with several threads torch splits its sums by
        the shape of the batch, and the last bits decide between two near codes (measured: 1 of
        280 codes differed between a batch of 4 and its clips alone with 2 threads, none with 1).

        Raises: ConfigError for a missing device or engine, or weights other than those of `spec`.
        """
        if spec.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "snac.device cuda cannot be used",
                "torch finds no CUDA device on this machine",
                "Set snac.device: cpu, or give the stage's workers a GPU (gpus_per_worker).",
            )
        torch.set_num_threads(1)
        keep_memory()
        model, sha256 = _build(spec)
        if sha256 != spec.sha256:
            raise ConfigError(
                "the codec's weights are not those that the run was planned with",
                f"their sha256 is {sha256}, expected {spec.sha256}",
                "Put the same weights (untrained: the same torch) on every machine.",
            )
        # Otherwise each of the 60 weights is normalised again at every call.
        for module in list(model.modules()):
            for name in list(getattr(module, "parametrizations", {})):
                parametrize.remove_parametrizations(module, name)
        model.eval().requires_grad_(False).to(spec.device)
        return cls(spec, model)

    def encode(self, clips_24k: Sequence[np.ndarray], clip_id: str = "") -> list[np.ndarray]:
        """Encode clips together: float32 [samples] to uint16 [7 F] each, as each alone.

        `clip_id` names the clips in errors.
        Raises: BadRecord empty_audio for no samples; StageError when torch fails.
        """
        frames = [padded_samples(len(clip)) // FRAME_SAMPLES for clip in clips_24k]
        if not all(frames):
            raise BadRecord("empty_audio", "the clip has no samples")
        audio = np.zeros((len(frames), max(frames) * FRAME_SAMPLES), np.float32)
        for row, clip in zip(audio, clips_24k, strict=True):
            row[: len(clip)] = clip  # SNAC too pads to whole frames with zeros
        with guarded(f"encode {len(audio)} x {audio.shape[1]} samples", clip_id):
            encoded = self._encode(torch.from_numpy(audio), frames)
        return [flatten_codes([book.numpy() for book in books]) for books in encoded]

    def decode(self, flat_codes: np.ndarray, seed: int, clip_id: str = "") -> np.ndarray:
        """Decode one clip: uint16 [7 F] to float32 [2048 F] at 24 kHz.

        The decoder adds noise, drawn from `seed` (see `clip_seed`) without touching torch's
        global generator.
        Raises: ContractError for codes that are not whole frames; StageError when torch fails.
        """
        codebooks = [torch.from_numpy(codes).unsqueeze(0) for codes in unflatten_codes(flat_codes)]
        devices = [self._device] if self._device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            guarded(f"decode {len(codebooks[0][0])} frames", clip_id),
        ):
            torch.manual_seed(seed)
            audio = self._model.decode([codes.to(self._device) for codes in codebooks])
            return audio[0, 0].cpu().numpy()


def _build(spec: CodecSpec) -> tuple[SNAC, str]:
    if not spec.trained:
        model = _untrained_model(spec.seed)
        return model, _state_sha256(model)
    folder = Path(spec.weights)
    model = SNAC(**_read_architecture(folder))
    path = folder / WEIGHTS_FILE
    sha256 = _file_sha256(path)
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises pickle, zip, key and runtime errors here
        what = f"{path} does not hold the weights of SNAC as {CONFIG_FILE} describes it"
        why = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise ConfigError(what, why, _REMEDY) from error
    return model, sha256


def _untrained_model(seed: int) -> SNAC:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SNAC(**ARCHITECTURE)


def _state_sha256(model: SNAC) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(f"the SNAC weights {path} cannot be read", why, _REMEDY) from error


def _read_architecture(folder: Path) -> dict[str, Any]:
    """Read config.json and check that its codes are those of the Orpheus layout."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the SNAC file {path} cannot be read", str(error), _REMEDY) from error
    if not isinstance(config, dict) or not set(config) <= {*ARCHITECTURE, "latent_dim"}:
        why = f"its keys should be among {', '.join(ARCHITECTURE)}"
        raise ConfigError(f"{path} is not a SNAC configuration", why, _REMEDY)
    fixed = ("sampling_rate", "codebook_size", "vq_strides", "attn_window_size")
    pairs = [(key, config.get(key), ARCHITECTURE[key]) for key in fixed]
    for key in ("encoder_rates", "decoder_rates"):  # other rates of the same hop would do
        pairs.append((f"the hop of {key}", math.prod(config.get(key) or [0]), 512))
    wrong = [
        f"{key} is {value!r}, expected {want!r}" for key, value, want in pairs if value != want
    ]
    if wrong:
        raise ConfigError(f"{path} is not SNAC 24 kHz", "; ".join(wrong), _REMEDY)
    return config


def _download(hub_id: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise ConfigError(
            f"snac.weights {hub_id!r} cannot be used",
            "it is neither a folder that exists nor a hub id (owner/name)",
            _REMEDY,
        )
    try:
        hf_hub_download(hub_id, CONFIG_FILE)
        return Path(hf_hub_download(hub_id, WEIGHTS_FILE)).parent
    except Exception as error:  # no network, 404, offline mode, full disk: one remedy
        why = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        what = f"the SNAC weights {hub_id} cannot be downloaded"
        raise ConfigError(what, why, _REMEDY) from error
