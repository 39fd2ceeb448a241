"""The settings of the stages: one section of `pipeline.yaml` for each, and one for the codec.

Defaults are declared here and nowhere else; the stages take these objects.
"""

from __future__ import annotations

import string
from typing import Literal

from pydantic import Field, field_validator

from koe.settings import PathOrName, PathOrUrl, Strict, WorkerConfig

Windows = Literal["reference", "all"]
Provider = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
ScorerEngine = Literal["auto", "native", "torch", "onnxruntime"]
Device = Literal["cpu", "cuda"]
CodecEngine = Literal["auto", "native", "tiled", "eager"]
Overlong = Literal["drop", "split"]
# natural, or places of the run (0 start, 1 end) with the rows of text to rows of speech there
Ratio = Literal["natural"] | list[tuple[float, dict[str, float]]]


class IngestConfig(WorkerConfig):
    """Reads the records of the sources and the headers of their audio."""

    cpus_per_worker: float = Field(
        default=0.25, gt=0, description=WorkerConfig.model_fields["cpus_per_worker"].description
    )
    max_seconds: float = Field(default=60.0, gt=0)
    """Clips that are longer are quarantined."""


class ScoreConfig(WorkerConfig):
    """Scores every clip with DNSMOS P.835; rejects none."""

    scorer: Literal["dnsmos", "source"] = "dnsmos"
    """dnsmos: score the audio; source: use the score in the field that fields.ovrl of the source
    names."""
    signal: Literal["original", "reconstruction"] = "original"
    """What is scored: the clip, or its reconstruction by SNAC, as in the published work."""
    windows: Windows = "reference"
    """reference: the windows that speechmos scores, which leaves out the 8th and later ones; all:
    every window."""
    model: PathOrUrl | None = None
    """The DNSMOS model; null: sig_bak_ovr.onnx of the package speechmos."""
    provider: Provider = "cpu"
    """Where the model runs; a missing provider stops the run."""
    precision: Precision = "fp32"
    """Precision of the convolutions; clips near the threshold are scored in fp32 in any case."""
    engine: ScorerEngine = "auto"
    """How the model is computed, chosen once for a run; the engines' scores agree to about
    1e-6. native needs a C compiler; auto on CUDA is torch."""
    p808: bool = False
    """Adds the P.808 score."""

    @field_validator("provider", mode="before")
    @classmethod
    def _no_tensorrt(cls, value: object) -> object:
        if value == "tensorrt":
            raise ValueError("tensorrt is no longer a provider: set score.provider: cuda")
        return value


class SnacConfig(Strict):
    """The codec of encode, of evaluation and of `koe inspect --wav`."""

    weights: PathOrName = Field(default="hubertsiuzdak/snac_24khz", validate_default=True)
    """A Hugging Face id, a local folder, or `untrained`."""
    sha256: str | None = "4b8164cc6606bfa627f1a784734c1e539891518f1191ed9194fe1e3b9b4bff40"
    """SHA-256 that pytorch_model.bin must have; null: any."""
    seed: int = 0
    """Seed of the untrained weights and of the decoder's noise."""
    device: Device = "cpu"
    """Where clips are encoded."""
    engine: CodecEngine = "auto"
    """How clips are encoded, chosen once for a run: near ties between codes depend on it.
    native needs a C compiler."""


class EncodeConfig(WorkerConfig):
    """Rejects clips that score too low, and encodes the others with SNAC."""

    threshold_ovrl: float = 2.5
    """Clips are kept whose ovrl is above it. Changing it never scores clips again."""
    batch_seconds: float | None = Field(default=None, ge=0)
    """Seconds of audio that are encoded at once; 0: clip by clip; null: 0 on a CPU, where that is
    fastest, and 60 on CUDA."""


class TokenizeConfig(WorkerConfig):
    """Turns clips and instruction samples into token ids."""

    cpus_per_worker: float = Field(
        default=0.5, gt=0, description=WorkerConfig.model_fields["cpus_per_worker"].description
    )
    tokenizer: PathOrName = Field(default="llama-models", validate_default=True)
    """Where Llama 3's tokenizer comes from: the package llama-models, a folder, or a Hugging Face
    id."""
    speech_prompt: str = "{text}"
    """Template of a speech sample's prompt: must name {text}, may name {speaker}."""
    drop_repeated_frames: bool = False
    """Drops a frame whose first code repeats that of the one before."""

    @field_validator("speech_prompt")
    @classmethod
    def _usable(cls, prompt: str) -> str:
        parts = [part[1:] for part in string.Formatter().parse(prompt) if part[1] is not None]
        names = [name for name, _, _ in parts]
        plain = all(not spec and not conversion for _, spec, conversion in parts)
        if not plain or "text" not in names or not set(names) <= {"text", "speaker"}:
            raise ValueError(
                f"{prompt!r} must name {{text}}, and may name {{speaker}}, as they are"
            )
        return prompt


class InterleaveConfig(WorkerConfig):
    """Packs samples into rows and puts the rows into the order of training."""

    max_row_tokens: int = Field(default=2048, ge=64)
    """Tokens that a packed row holds at most."""
    ratio: Ratio = "natural"
    """natural: as the corpora have it; or a list of places in the run, from 0.0 to 1.0, each with
    the ratio of text rows to speech rows there."""
    overlong_speech: Overlong = "drop"
    """What happens to a clip longer than a row; split: it is cut between frames."""
    overlong_text: Overlong = "split"
    """What happens to a text sample longer than a row."""
    shard_megabytes: float = Field(default=256, gt=0)
    """Approximate size of a shard."""
    validation_share: float = Field(default=0.005, ge=0, lt=0.5)
    """Share of each modality's rows for validation."""

    @field_validator("ratio")
    @classmethod
    def _schedule(cls, ratio: Ratio) -> Ratio:
        if ratio == "natural":
            return ratio
        places = [place for place, _ in ratio]
        if not places or places[0] != 0.0 or places != sorted(places) or places[-1] > 1.0:
            raise ValueError(f"the places {places} must start at 0.0 and rise to at most 1.0")
        for place, parts in ratio:
            if unknown := set(parts) - {"text", "speech"}:
                raise ValueError(f"{unknown} at {place} are neither text nor speech")
            if min(parts.values(), default=0) < 0 or sum(parts.values()) <= 0:
                raise ValueError(f"the parts at {place} must not be negative nor all zero")
        return ratio


class InterleaveSettings(InterleaveConfig):
    """The section and the run's seed: together all that decides the order of the samples."""

    seed: int
