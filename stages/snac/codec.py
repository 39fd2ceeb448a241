"""The SNAC 24 kHz codec: clips to codes and back."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from snac import SNAC

from koe.errors import BadRecord, ConfigError
from koe.memory import keep_memory
from koe.vocabulary import unflatten_codes
from stages.native.repeatable import require_gpu
from stages.settings import CodecEngine, CodecPrecision, Device, SnacConfig
from stages.snac.architecture import fold_weight_norm
from stages.snac.encoder import supports
from stages.snac.engines import open_stream, resolve_engine
from stages.snac.guarding import Attempt, guarded
from stages.snac.untrained import RECIPE
from stages.snac.weights import UNTRAINED, architecture_of, find_weights, load_model


@dataclass(frozen=True)
class CodecSpec:
    """Weights and engine, resolved once and the same for every worker of a run. Picklable.

    `weights` is `untrained` or a folder, `sha256` (hex) that of the weights file or, untrained,
    of the seeded weights. `engine` is a name of `resolve_engine`, never `auto`. `seed` is for the
    untrained weights and the decoder's noise.
    """

    weights: str
    sha256: str
    engine: str
    seed: int = 0
    device: Device = "cpu"

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
        described = {
            "label": self.label,
            "trained": self.trained,
            "sha256": self.sha256,
            "device": self.device,
            "engine": self.engine,
        }
        return described if self.trained else described | {"seed": self.seed, "recipe": RECIPE}


def resolve_codec(
    weights: str,
    sha256: str | None = None,
    seed: int = 0,
    device: Device = "cpu",
    engine: CodecEngine = "auto",
    precision: CodecPrecision = "fp32",
) -> CodecSpec:
    """Find and check the weights, and choose the engine: once, before any work.

    `weights` is `untrained` (then `sha256` does not apply), a folder, or a hub id; `sha256`
    None accepts any weights file.
    Raises: ConfigError with a remedy when they are absent, differ, or are not SNAC 24 kHz, or the
    engine does not run here.
    """
    location, found = find_weights(weights, sha256, seed)
    name = resolve_engine(engine, device, supports(architecture_of(location)), precision)
    return CodecSpec(location, found, name, seed, device)


def codec_of(settings: SnacConfig) -> CodecSpec:
    """Return what `resolve_codec` finds for a run's settings. Raises: as it does."""
    return resolve_codec(
        settings.weights,
        settings.sha256,
        settings.seed,
        settings.device,
        settings.engine,
        settings.precision,
    )


def clip_seed(clip_id: str, seed: int) -> int:
    """Return the seed of a clip's decoder noise: the same on any worker, in any order."""
    digest = hashlib.sha256(f"{seed}:{clip_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits without wrapping


def _with_samples(clip: tuple[int, np.ndarray]) -> tuple[int, np.ndarray]:
    if not len(clip[1]):
        raise BadRecord("empty_audio", "the clip has no samples")
    return clip


class Codec:
    """A SNAC model ready to run. Not picklable: open one per worker from a `CodecSpec`."""

    def __init__(self, spec: CodecSpec, model: SNAC, gpu_share: float = 1.0) -> None:
        self.spec = spec
        self._model = model
        self._device = torch.device(spec.device)
        self._clips = open_stream(model, spec.engine, spec.device, gpu_share)

    @classmethod
    def open(cls, spec: CodecSpec, gpu_share: float = 1.0) -> Codec:
        """Build the model, and hold torch to one thread in this process.

        On CUDA, `gpu_share` of the GPU's memory bounds the batches.

        More workers, not threads, use more cores: with several threads torch splits its sums by
        the shape of the batch, and the last bits decide between two near codes (measured: 1 of
        280 codes differed between a batch of 4 and its clips alone with 2 threads, none with 1).

        Raises: ConfigError for a missing device or engine, or weights other than those of `spec`.
        """
        if spec.device == "cuda":
            require_gpu("snac.device")
        torch.set_num_threads(1)
        keep_memory()
        model, sha256 = load_model(spec.weights, spec.seed)
        if sha256 != spec.sha256:
            raise ConfigError(
                "the codec's weights are not those that the run was planned with",
                f"their sha256 is {sha256}, expected {spec.sha256}",
                "Put the same weights (untrained: the same koe and torch) on every machine.",
            )
        return cls(spec, fold_weight_norm(model).to(spec.device), gpu_share)

    def encode(self, clips_24k: Sequence[np.ndarray], clip_id: str = "") -> list[np.ndarray]:
        """Encode clips together: float32 [samples] to uint16 [7 F] each, as if each were alone.

        `clip_id` names the clips in errors.
        Raises: as `stream`.
        """
        names = [clip_id] * len(clips_24k)
        codes = dict(self.stream(enumerate(clips_24k), sys.maxsize, names))
        return [codes[clip] for clip in range(len(clips_24k))]

    def stream(
        self, clips: Iterable[tuple[int, np.ndarray]], batch_samples: int, names: Sequence[str]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Encode clips as they come, `batch_samples` at once or what memory holds of them.

        Takes float32 [samples] and yields uint16 [7 F], each as if the clip were alone, beside the
        place that the clip has in `names`; in no particular order, and some clips behind.
        Raises: BadRecord empty_audio for no samples; StageError, which names the clips, when torch
        fails, or when memory does not hold one of them.
        """
        return self._clips.stream(map(_with_samples, clips), batch_samples, names)

    def decode(self, flat_codes: np.ndarray, seed: int, clip_id: str = "") -> np.ndarray:
        """Decode one clip: uint16 [7 F] to float32 [2048 F] at 24 kHz.

        The decoder adds noise, drawn from `seed` (see `clip_seed`) without touching torch's
        global generator.
        Raises: ContractError for codes that are not complete frames; StageError when torch fails.
        """
        codebooks = [torch.from_numpy(codes).unsqueeze(0) for codes in unflatten_codes(flat_codes)]
        devices = [self._device] if self._device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            guarded(Attempt(f"decode {len(codebooks[0][0])} frames", clip_id)),
        ):
            torch.manual_seed(seed)
            audio = self._model.decode([codes.to(self._device) for codes in codebooks])
            return audio[0, 0].cpu().numpy()
