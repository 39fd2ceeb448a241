"""The settings of the stages: one section of `pipeline.yaml` for each, and one for the codec.

Defaults are declared here and nowhere else; the stages take these objects.
"""

from __future__ import annotations

import string
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from koe.settings import PathOrName, PathOrUrl, Strict, WorkerConfig

Windows = Literal["reference", "all"]
Provider = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
ScorerEngine = Literal["auto", "native", "torch", "onnxruntime"]
Device = Literal["cpu", "cuda"]
CodecEngine = Literal["auto", "native", "tiled", "eager", "fused"]
CodecPrecision = Literal["fp32", "tf32"]
Language = Literal["ja"]  # each is a file of stages/text
Overlong = Literal["drop", "split"]
# natural, or places of the run (0 start, 1 end) with the rows of text to rows of speech there
Ratio = Literal["natural"] | list[tuple[float, dict[str, float]]]


def _memory(gigabytes: float) -> Any:
    """Give a stage's workers the memory that `benchmarks/worker_memory.py` measured, and room."""
    described = WorkerConfig.model_fields["memory_gigabytes_per_worker"].description
    return Field(default=gigabytes, ge=0, description=described)


class IngestConfig(WorkerConfig):
    """Reads the records of the sources and the headers of their audio."""

    cpus_per_worker: float = Field(
        default=0.25, gt=0, description=WorkerConfig.model_fields["cpus_per_worker"].description
    )
    memory_gigabytes_per_worker: float = _memory(0.6)
    max_seconds: float = Field(default=60.0, gt=0)
    """Clips that are longer are quarantined."""


class ScoreConfig(WorkerConfig):
    """Scores every clip with DNSMOS P.835; rejects none."""

    memory_gigabytes_per_worker: float = _memory(1.0)
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
    """Where the model runs; a missing provider stops the run. On cuda many clips are scored at
    once, which the worker's CPUs decode ahead."""
    precision: Precision = "fp32"
    """Precision of the convolutions; clips near the threshold are scored in fp32 in any case. On a
    CPU, bf16 needs AVX-512 BF16 or AMX, and the scores that are stored are up to 0.06 off."""
    engine: ScorerEngine = "auto"
    """How the model is computed, chosen once for a run; in fp32 the engines' scores agree to about
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
    native and tiled are for a CPU, and native needs a C compiler; fused is for CUDA, and needs
    Triton and a C compiler; eager runs on both."""
    precision: CodecPrecision = "fp32"
    """Precision of the encoder's products; tf32 is what the snac package computes with on a GPU, is
    for the engine fused, and changes some per cent of the codes, those whose next entry is near."""


class EncodeConfig(WorkerConfig):
    """Rejects clips that score too low, and encodes the others with SNAC."""

    memory_gigabytes_per_worker: float = _memory(1.2)
    threshold_ovrl: float = 2.5
    """Clips are kept whose ovrl is above it. Changing it never scores clips again."""
    batch_seconds: float | None = Field(default=None, ge=0)
    """Seconds of audio that are encoded at once; 0: clip by clip; null: 0 on a CPU, where that is
    fastest, 60 on CUDA, and 88 there with snac.engine fused, which encodes at least 22 at once. The
    memory of a GPU may allow less."""


class TranscriptsConfig(Strict):
    """What becomes of transcripts that do not fit their clip. Every check is off by default; a clip
    that fails one is rejected, after encode, so that changing a check scores and encodes no clip
    again. Instruction samples are left as they are.

    Characters are letters and digits; blanks, punctuation and symbols do not count.
    """

    language: Language | None = "ja"
    """Whose script and phrases the checks know, and what counts as a character; null: none."""
    normalize: Literal["none", "nfc", "nfkc"] = "none"
    """Unicode normalisation form that transcripts are brought into before anything else."""
    invisible_characters: Literal["keep", "strip", "reject"] = "keep"
    """Control and zero-width characters, line breaks and tabs apart; strip: they are taken out."""
    min_characters_per_second: float | None = Field(default=None, gt=0)
    """Clips with fewer characters per second are rejected as text_too_short; null: none is."""
    max_characters_per_second: float | None = Field(default=None, gt=0)
    """Clips with more characters per second are rejected as text_too_long; null: none is."""
    max_rate_deviations: float | None = Field(default=None, gt=0)
    """Clips whose characters per second are further from their source's median, in robust standard
    deviations of its logarithm, are rejected by interleave, which knows all clips of a source.
    Sources of fewer than 20 clips are left as they are; null: all are."""
    min_script_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the letters that must be of the language's script; null: any."""
    max_repeats: int | None = Field(default=None, ge=1)
    """How often the same 1 to 40 characters may follow one another; null: as often as they do."""
    invented_phrases: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Transcripts that consist of nothing but these are rejected, as speech recognisers invent them
    for silence and music; `default` stands for the phrases known of the language. Some are really
    said, as at the end of videos: `koe stats --what-if` shows how many clips they cost."""

    @model_validator(mode="after")
    def _sensible(self) -> TranscriptsConfig:
        least, most = self.min_characters_per_second, self.max_characters_per_second
        if least is not None and most is not None and least >= most:
            raise ValueError(f"no clip has more than {least:g} and fewer than {most:g} characters "
                             "per second: min_characters_per_second must be the smaller")  # fmt: skip
        if self.language is None and self.min_script_share is not None:
            raise ValueError("min_script_share needs a language")
        if self.language is None and "default" in self.invented_phrases:
            raise ValueError("invented_phrases: default needs a language")
        return self

    def text_content(self) -> dict[str, Any]:
        """Return what decides the samples of single clips; empty where every check is off."""
        return self._content(exclude={"max_rate_deviations"})

    def rate_content(self) -> dict[str, Any]:
        """Return what decides the check by source; empty where it is off."""
        if self.max_rate_deviations is None:
            return {}
        names = {"language", "normalize", "invisible_characters", "max_rate_deviations"}
        return self.model_dump(mode="json", include=names)

    def _content(self, exclude: set[str]) -> dict[str, Any]:
        # A run from before a check existed, and one with the check off, make the same.
        given = self.model_dump(mode="json", exclude=exclude, exclude_defaults=True)
        return given | {"language": self.language} if set(given) - {"language"} else {}


class TokenizeConfig(WorkerConfig):
    """Turns clips and instruction samples into token ids."""

    cpus_per_worker: float = Field(
        default=0.5, gt=0, description=WorkerConfig.model_fields["cpus_per_worker"].description
    )
    memory_gigabytes_per_worker: float = _memory(1.4)
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


Duplicates = Literal["keep", "drop"]


class DuplicatesConfig(Strict):
    """Whether clips that repeat an earlier one leave: the first in plan order stays, and the others
    are rejected and counted. `koe stats` shows what each would drop."""

    audio: Duplicates = "keep"
    """Clips that are the same part of the same bytes, whatever their files are called."""
    codes: Duplicates = "keep"
    """Clips with the same codes, which are the same to the trainer; those of audio among them."""
    text: Duplicates = "keep"
    """Clips of one speaker of a source with the same transcript; a clip without a speaker is none."""


class InterleaveConfig(WorkerConfig):
    """Packs samples into rows and puts the rows into the order of training."""

    max_row_tokens: int = Field(default=2048, ge=64)
    """Tokens that a packed row holds at most."""
    ratio: Ratio = "natural"
    """natural: as the corpora have it; or a list of places in the run, from 0.0 to 1.0, each with
    the ratio of text rows to speech rows there."""
    duplicates: DuplicatesConfig = DuplicatesConfig()
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
    """The section, the run's seed and its checks of transcripts: together all that decides the order
    of the samples."""

    seed: int
    transcripts: TranscriptsConfig = TranscriptsConfig()

    def content(self) -> dict[str, Any]:
        # What is off is left out: the order is that of a run from before it existed.
        content = super().content()
        if self.duplicates == DuplicatesConfig():
            del content["duplicates"]
        content["transcripts"] = self.transcripts.rate_content()
        if not content["transcripts"]:
            del content["transcripts"]
        return content
