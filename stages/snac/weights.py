"""Where the weights of SNAC 24 kHz come from: a folder, the Hugging Face hub, or a seed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from snac import SNAC

from koe.errors import ConfigError
from stages.snac.architecture import ARCHITECTURE
from stages.snac.untrained import sha256_of, untrained_model, untrained_weights

UNTRAINED = "untrained"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "pytorch_model.bin"
PUBLISHED_SHA256 = "4b8164cc6606bfa627f1a784734c1e539891518f1191ed9194fe1e3b9b4bff40"
PUBLISHED_BYTES = 79_488_254

_REMEDY = (
    f"Put {CONFIG_FILE} and {WEIGHTS_FILE} ({PUBLISHED_BYTES:,} bytes, sha256 "
    f"{PUBLISHED_SHA256}) of hubertsiuzdak/snac_24khz into a folder and set "
    "`snac.weights: /that/folder`, or set `snac.weights: untrained` for a trial whose codes "
    "carry no speech."
)


def find_weights(weights: str, sha256: str | None, seed: int) -> tuple[str, str]:
    """Return where the weights are, `untrained` or a folder, and their SHA-256 in hex.

    `weights` is `untrained` (then `sha256` does not apply), a folder, or a hub id; `sha256` None
    accepts any weights file.
    Raises: ConfigError with a remedy when they are absent, differ, or are not SNAC 24 kHz.
    """
    if weights == UNTRAINED:
        return UNTRAINED, sha256_of(untrained_weights(seed))
    folder = Path(weights)
    if not folder.is_dir():
        folder = _download(weights)
    read_architecture(folder)
    found = _file_sha256(folder / WEIGHTS_FILE)
    if sha256 and found != sha256.lower():
        raise ConfigError(
            f"{folder / WEIGHTS_FILE} is not the expected file",
            f"its sha256 is {found}, but snac.sha256 is {sha256}",
            "Download the file again, or set snac.sha256 to null to accept any weights.",
        )
    return str(folder), found


def architecture_of(weights: str) -> dict[str, Any]:
    """Return the settings of the model that `find_weights` found."""
    return ARCHITECTURE if weights == UNTRAINED else read_architecture(Path(weights))


def load_model(weights: str, seed: int) -> tuple[SNAC, str]:
    """Load what `find_weights` found, and return it with its SHA-256.

    Raises: ConfigError when the file cannot be read or does not hold SNAC's weights.
    """
    if weights == UNTRAINED:
        return untrained_model(seed)
    folder = Path(weights)
    model = SNAC(**read_architecture(folder))
    path = folder / WEIGHTS_FILE
    sha256 = _file_sha256(path)
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises pickle, zip, key and runtime errors here
        what = f"{path} does not hold the weights of SNAC as {CONFIG_FILE} describes it"
        why = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise ConfigError(what, why, _REMEDY) from error
    return model, sha256


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(f"the SNAC weights {path} cannot be read", why, _REMEDY) from error


def read_architecture(folder: Path) -> dict[str, Any]:
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
