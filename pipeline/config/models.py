"""The run's configuration: `pipeline.yaml` as frozen models that refuse unknown keys."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from training.config import TrainConfig


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WorkerConfig(Strict):
    """Resources of one stage's workers."""

    workers: int | None = Field(
        default=None,
        ge=1,
        description="of this stage; null: Ray grows the pool where it is the bottleneck",
    )
    cpus_per_worker: float = Field(
        default=1.0, gt=0, description="CPUs that Ray keeps for each worker; may be a fraction"
    )
    gpus_per_worker: float = Field(
        default=0.0, ge=0, description="GPUs that Ray keeps for each worker; may be a fraction"
    )


class SpeechFields(Strict):
    """Which field of a record holds what; dots descend into nested fields."""

    text: str = Field(default="text", description="the transcript")
    audio: str | None = Field(
        default=None,
        description="null: the usual name for the kind of source; of a webdataset the extension",
    )
    id: str | None = Field(default=None, description="null: made from the file's name and place")
    speaker: str | None = Field(
        default=None, description="used by tokenize.speech_prompt; null: the source has none"
    )
    start_seconds: str | None = Field(
        default="offset", description="start of the clip in its file, in seconds"
    )
    seconds: str | None = Field(
        default="duration",
        description="length of the clip in seconds; read only where the record has a start",
    )
    ovrl: str | None = Field(
        default=None, description="a DNSMOS score that the source has, for score.scorer: source"
    )


class SpeechSource(Strict):
    """A corpus of speech clips with their transcripts."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.]+$", description="prefix of every clip's id")
    kind: Literal["webdataset", "parquet", "manifest", "folder"] = Field(
        description="how records are stored: tars, Parquet, JSON lines, or metadata beside audio"
    )
    paths: list[str] = Field(min_length=1, description="files or globs; fsspec URLs too")
    audio_root: str | None = Field(
        default=None,
        description="what audio paths start from; null: the folder of the file that names them",
    )
    fields: SpeechFields = SpeechFields()


class TextFields(Strict):
    """Field names of an instruction source, for its layout."""

    id: str | None = Field(default=None, description="null: made from the file's name and place")
    instruction: str = Field(default="instruction", description="of layout instruction")
    input: str = Field(
        default="input", description="of layout instruction: goes below it; may be absent or empty"
    )
    output: str = Field(default="output", description="of layout instruction: the answer")
    messages: str | None = Field(
        default=None, description="null: messages or conversations by layout"
    )
    role: str | None = Field(default=None, description="null: role or from by layout")
    content: str | None = Field(default=None, description="null: content or value by layout")


class TextSource(Strict):
    """A corpus of instruction samples."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.]+$", description="prefix of every sample's id")
    kind: Literal["jsonl", "json", "parquet"] = Field(
        description="one object a line, one array of objects, or rows"
    )
    layout: Literal["instruction", "messages", "sharegpt"] = Field(
        default="instruction",
        description="instruction, input, output; or a list of role and content; or of from and value",
    )
    paths: list[str] = Field(min_length=1, description="files or globs; fsspec URLs too")
    fields: TextFields = TextFields()


class SourcesConfig(Strict):
    """What is read; at least one source of either kind."""

    speech: list[SpeechSource] = Field(default=[], description="corpora of clips")
    text: list[TextSource] = Field(default=[], description="corpora of instruction samples")


class PlanConfig(Strict):
    """Sizes of the units of work: what a kill can cost at most, a worker."""

    unit_clips: int = Field(default=1000, ge=1, description="clips of a unit")
    unit_samples: int = Field(default=5000, ge=1, description="instruction samples of a unit")


class IngestConfig(WorkerConfig):
    """Reads records and the headers of their audio."""

    cpus_per_worker: float = Field(
        default=0.25, gt=0, description="CPUs that Ray keeps for each worker; may be a fraction"
    )
    max_seconds: float = Field(default=60.0, gt=0, description="longer clips are quarantined")


class ScoreConfig(WorkerConfig):
    """DNSMOS P.835 of every clip; rejects nothing."""

    scorer: Literal["dnsmos", "source"] = Field(
        default="dnsmos", description="source: use the score named by the source's fields.ovrl"
    )
    signal: Literal["original", "reconstruction"] = Field(
        default="original",
        description="what is scored; reconstruction: what SNAC makes of the clip, as in the "
        "published work",
    )
    windows: Literal["reference", "all"] = Field(
        default="reference",
        description="reference: those that speechmos scores, which skips the 8th and later ones",
    )
    model: str | None = Field(
        default=None, description="null: sig_bak_ovr.onnx of the speechmos package"
    )
    provider: Literal["cpu", "cuda", "tensorrt"] = Field(
        default="cpu", description="a missing provider stops the run"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the convolutions; near the threshold always fp32"
    )
    engine: Literal["auto", "native", "torch", "onnxruntime"] = Field(
        default="auto",
        description="the scores agree to some 1e-6; native needs a C compiler; auto on CUDA: torch",
    )
    p808: bool = Field(default=False, description="add the P.808 score")


class SnacConfig(Strict):
    """The codec of encode, evaluation and `koe inspect --wav`."""

    weights: str = Field(
        default="hubertsiuzdak/snac_24khz", description="hub id, local folder, or `untrained`"
    )
    sha256: str | None = Field(
        default="4b8164cc6606bfa627f1a784734c1e539891518f1191ed9194fe1e3b9b4bff40",
        description="of pytorch_model.bin; null: any file",
    )
    seed: int = Field(default=0, description="of the untrained weights and of the decoder's noise")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where it encodes")
    engine: Literal["auto", "native", "tiled", "eager"] = Field(
        default="auto",
        description="how clips are encoded; the codes are the same; native needs a C compiler",
    )


class EncodeConfig(WorkerConfig):
    """SNAC codes of the clips that score well enough."""

    threshold_ovrl: float = Field(
        default=2.5, description="clips must score above it; moving it never rescores"
    )
    batch_seconds: float | None = Field(
        default=None,
        ge=0,
        description="audio that is encoded at once, in seconds; 0: one clip; null: 0 on a CPU, "
        "where that is fastest, 60 on CUDA",
    )


class TokenizeConfig(WorkerConfig):
    """Token ids of clips and of instruction samples."""

    cpus_per_worker: float = Field(
        default=0.5, gt=0, description="CPUs that Ray keeps for each worker; may be a fraction"
    )
    tokenizer: str = Field(
        default="llama-models",
        description="the package that ships Llama 3's, a folder, or a hub id",
    )
    speech_prompt: str = Field(default="{text}", description="may also name {speaker}")
    drop_repeated_frames: bool = Field(
        default=False, description="drop a frame whose first code repeats the one before it"
    )


class InterleaveConfig(WorkerConfig):
    """Packs samples into rows and puts the rows in the order of training."""

    max_row_tokens: int = Field(default=2048, ge=64, description="of a packed row, at most")
    ratio: Literal["natural"] | list[tuple[float, dict[str, float]]] = Field(
        default="natural",
        description="natural: as the corpora have it; or places from 0.0 to 1.0 in the run, each "
        "with the rows of text to rows of speech there",
    )
    overlong_speech: Literal["drop", "split"] = Field(
        default="drop", description="a clip longer than a row; split: at whole frames"
    )
    overlong_text: Literal["drop", "split"] = Field(
        default="split", description="a text sample longer than a row"
    )
    shard_megabytes: float = Field(default=256, gt=0, description="size of a shard, about")
    validation_share: float = Field(
        default=0.005, ge=0, lt=0.5, description="of the rows of each modality"
    )

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
    """Where the work runs."""

    address: str | None = Field(
        default=None, description="null: start a local Ray; auto: join a cluster"
    )
    num_cpus: int | None = Field(default=None, ge=1, description="of the local Ray; null: all")


class PipelineConfig(Strict):
    """The whole run."""

    run_dir: str = Field(
        description="outputs, receipts, shards, checkpoints; relative to this file, or a URL"
    )
    seed: int = Field(
        default=0, description="decides shuffling, packing order and the validation split"
    )
    engine: Literal["ray", "inline"] = Field(
        default="ray", description="inline: one process, for debugging"
    )
    max_quarantine_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="of all records; with more of them bad the run stops before interleave",
    )
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
        if "all" in names:
            raise ValueError("no source may be called all: statistics mean every source by it")
        return sources
