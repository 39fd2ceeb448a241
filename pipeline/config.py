"""The run's configuration: `pipeline.yaml` as frozen models that refuse unknown keys."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.errors import ConfigError
from training.config import TrainConfig


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkerConfig(Strict):
    """Resources of one stage's workers."""

    workers: int | None = Field(
        default=None, ge=1, description="null: chosen from the cluster's CPUs"
    )
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)


class SpeechFields(Strict):
    """Which field of a record holds what; dots descend into nested fields."""

    text: str = "text"
    audio: str | None = Field(
        default=None, description="null: the usual name for the kind of source"
    )
    id: str | None = Field(default=None, description="null: made from the file's name and place")
    speaker: str | None = None
    start_seconds: str | None = Field(default="offset", description="start of the clip in its file")
    seconds: str | None = Field(default="duration", description="length of the clip")
    ovrl: str | None = Field(
        default=None, description="a DNSMOS score that the source carries (dnsmos)"
    )


class SpeechSource(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_.]+$")
    kind: Literal["webdataset", "parquet", "manifest", "folder"]
    paths: list[str] = Field(min_length=1, description="files or globs; fsspec URLs too")
    audio_root: str | None = Field(
        default=None, description="null: relative to the manifest's folder"
    )
    fields: SpeechFields = SpeechFields()


class TextFields(Strict):
    """Field names of an instruction source, for its layout."""

    id: str | None = Field(default=None, description="null: made from the file's name and place")
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    messages: str | None = Field(
        default=None, description="null: messages or conversations by layout"
    )
    role: str | None = Field(default=None, description="null: role or from by layout")
    content: str | None = Field(default=None, description="null: content or value by layout")


class TextSource(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_.]+$")
    kind: Literal["jsonl", "json", "parquet"]
    layout: Literal["instruction", "messages", "sharegpt"] = "instruction"
    paths: list[str] = Field(min_length=1)
    fields: TextFields = TextFields()


class SourcesConfig(Strict):
    speech: list[SpeechSource] = []
    text: list[TextSource] = []


class PlanConfig(Strict):
    unit_clips: int = Field(default=1000, ge=1)
    unit_samples: int = Field(default=5000, ge=1)


class IngestConfig(WorkerConfig):
    cpus_per_worker: float = Field(default=0.25, gt=0)
    max_seconds: float = Field(default=60.0, gt=0, description="longer clips are quarantined")


class ScoreConfig(WorkerConfig):
    scorer: Literal["dnsmos", "source"] = Field(
        default="dnsmos", description="source: use the score named by the source's fields.ovrl"
    )
    signal: Literal["original", "reconstruction"] = "original"
    windows: Literal["reference", "all"] = "reference"
    model: str | None = Field(
        default=None, description="null: sig_bak_ovr.onnx of the speechmos package"
    )
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the convolutions; near the threshold always fp32"
    )
    engine: Literal["auto", "native", "onnxruntime"] = Field(
        default="auto", description="of fp32 on a CPU; the scores agree to some 1e-6"
    )
    p808: bool = Field(default=False, description="add the P.808 score")


class SnacConfig(Strict):
    weights: str = Field(
        default="hubertsiuzdak/snac_24khz", description="hub id, local folder, or `untrained`"
    )
    sha256: str | None = Field(
        default="4b8164cc6606bfa627f1a784734c1e539891518f1191ed9194fe1e3b9b4bff40",
        description="of pytorch_model.bin; null accepts any file",
    )
    seed: int = Field(default=0, description="of the untrained weights and of the decoder's noise")
    device: Literal["cpu", "cuda"] = "cpu"
    engine: Literal["auto", "native", "tiled", "compile", "eager"] = Field(
        default="auto", description="how clips are encoded; the codes are the same"
    )


class EncodeConfig(WorkerConfig):
    threshold_ovrl: float = Field(default=2.5, description="clips must score above it")
    batch_seconds: float = Field(
        default=0.0,
        ge=0,
        description="audio in a batch of clips of equal padded length; 0: one clip",
    )


class TokenizeConfig(WorkerConfig):
    cpus_per_worker: float = Field(default=0.5, gt=0)
    tokenizer: str = Field(
        default="llama-models",
        description="the package that ships Llama 3's, a folder, or a hub id",
    )
    speech_prompt: str = Field(default="{text}", description="may also name {speaker}")
    drop_repeated_frames: bool = Field(
        default=False, description="drop a frame whose first code repeats the one before it"
    )


class InterleaveConfig(WorkerConfig):
    max_row_tokens: int = Field(default=2048, ge=64)
    ratio: Literal["natural"] | list[tuple[float, dict[str, float]]] = "natural"
    overlong_speech: Literal["drop", "split"] = "drop"
    overlong_text: Literal["drop", "split"] = "split"
    shard_megabytes: float = Field(default=256, gt=0)
    validation_share: float = Field(default=0.005, ge=0, lt=0.5)

    @field_validator("ratio")
    @classmethod
    def _schedule(cls, ratio):
        if ratio == "natural":
            return ratio
        places = [place for place, _ in ratio]
        if not places or places[0] != 0.0 or places != sorted(places) or places[-1] > 1.0:
            raise ValueError("the schedule must start at 0.0 and rise to at most 1.0")
        for place, parts in ratio:
            if unknown := set(parts) - {"text", "speech"}:
                raise ValueError(f"{unknown} at {place} are neither text nor speech")
            if min(parts.values(), default=0) < 0 or sum(parts.values()) <= 0:
                raise ValueError(f"the parts at {place} must not be negative nor all zero")
        return ratio


class RayConfig(Strict):
    address: str | None = Field(
        default=None, description="null: start a local Ray; auto: join a cluster"
    )
    num_cpus: int | None = Field(default=None, ge=1, description="of the local Ray; null: all")


class PipelineConfig(Strict):
    """The whole run."""

    run_dir: str = Field(description="outputs and ledger; relative to this file")
    seed: int = 0
    engine: Literal["ray", "inline"] = "ray"
    max_quarantine_share: float = Field(default=0.05, ge=0, le=1)
    sources: SourcesConfig
    plan: PlanConfig = PlanConfig()
    ingest: IngestConfig = IngestConfig()
    score: ScoreConfig = ScoreConfig()
    snac: SnacConfig = SnacConfig()
    encode: EncodeConfig = EncodeConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    interleave: InterleaveConfig = InterleaveConfig()
    train: TrainConfig = TrainConfig()
    ray: RayConfig = RayConfig()

    @field_validator("sources")
    @classmethod
    def _named_once(cls, sources: SourcesConfig) -> SourcesConfig:
        names = [source.name for source in (*sources.speech, *sources.text)]
        if not names:
            raise ValueError("name at least one speech or text source")
        if len(set(names)) != len(names):
            raise ValueError(f"source names must differ, found {names}")
        return sources


def load_config(path: Path, overrides: list[str] | None = None) -> PipelineConfig:
    """Read `path`, apply `key.path=value` overrides, and resolve relative paths against it.

    Raises: ConfigError naming the key, and the nearest known one for an unknown key.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist",
            remedy="Name a config with -c, or write one with `koe demo DIR`.",
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read", str(error).replace("\n", " ")) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no mapping of keys")
    for override in overrides or []:
        _override(data, override)
    try:
        config = PipelineConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{path} is not a valid configuration", _explain(error)) from None
    return _resolve(config, path.resolve().parent)


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override} is not of the form key.path=value")
    *parents, last = key.split(".")
    place: Any = data
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise ConfigError(f"--set {key} does not lead to a mapping of keys")
    place[last] = yaml.safe_load(value)


def _explain(error: ValidationError) -> str:
    """Turn pydantic's findings into lines that name the key and the nearest known one."""
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            lines.append(f"unknown key {key!r} ({hint})")
        else:
            lines.append(f"{key}: {problem['msg']}")
    return "; ".join(lines)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = PipelineConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = getattr(annotation, "__args__", (annotation,))
        model = next(
            (a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), annotation
        )
    return sorted(model.model_fields)


def _resolve(config: PipelineConfig, folder: Path) -> PipelineConfig:
    """Make every local path absolute, so that a worker's working directory does not matter."""

    def absolute(path: str) -> str:
        return path if "://" in path else os.path.normpath(folder / Path(path).expanduser())

    def source(item):
        changes: dict[str, Any] = {"paths": [absolute(path) for path in item.paths]}
        if getattr(item, "audio_root", None):
            changes["audio_root"] = absolute(item.audio_root)
        return item.model_copy(update=changes)

    def local_or_id(name: str) -> str:
        candidate = folder / Path(name).expanduser()
        return (
            os.path.normpath(candidate)
            if candidate.exists() or name.startswith((".", "/", "~"))
            else name
        )

    sources = config.sources.model_copy(
        update={
            "speech": [source(item) for item in config.sources.speech],
            "text": [source(item) for item in config.sources.text],
        }
    )
    score = config.score.model_copy(
        update={"model": absolute(config.score.model) if config.score.model else None}
    )
    base = config.train.base_model
    return config.model_copy(
        update={
            "run_dir": absolute(config.run_dir),
            "sources": sources,
            "score": score,
            "snac": config.snac.model_copy(update={"weights": local_or_id(config.snac.weights)}),
            "tokenize": config.tokenize.model_copy(
                update={"tokenizer": local_or_id(config.tokenize.tokenizer)}
            ),
            "train": config.train.model_copy(
                update={"base_model": local_or_id(base) if base else None}
            ),
        }
    )
