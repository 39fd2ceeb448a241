"""The run's configuration: the sections of `pipeline.yaml` put together.

The stages' sections are declared in `stages/settings.py` and `stages/sources/settings.py`, the
trainer's in `training/config.py`; this module declares only what belongs to no stage.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from koe.settings import PathOrUrl, Strict
from stages.settings import (
    EncodeConfig,
    IngestConfig,
    InterleaveConfig,
    ScoreConfig,
    SnacConfig,
    TokenizeConfig,
    TranscriptsConfig,
)
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from training.config import RENAMED as RENAMED_IN_TRAIN
from training.config import TrainConfig

# Former path of a key -> its present name; see `koe/renamed.py`.
RENAMED = {"plan.unit_clips": "clips_per_unit", "plan.unit_samples": "samples_per_unit"} | {
    f"train.{path}": name for path, name in RENAMED_IN_TRAIN.items()
}


class SourcesConfig(Strict):
    """What is read: at least one source of either kind."""

    speech: list[SpeechSourceConfig] = Field(default=[])
    """Corpora of speech clips."""
    text: list[TextSourceConfig] = Field(default=[])
    """Corpora of instruction samples."""


class PlanConfig(Strict):
    """Sizes of the units of work, and when one is given up: a worker that is killed loses at most the
    unit it works on."""

    clips_per_unit: int = Field(default=1000, ge=1)
    """Speech clips of a unit."""
    samples_per_unit: int = Field(default=5000, ge=1)
    """Instruction samples of a unit."""
    unit_attempts: int = Field(default=3, ge=1)
    """How often a stage may begin a unit whose worker dies or misses its deadline each time; then the
    unit is set aside. All workers and runs count."""
    unit_minutes_max: float | None = Field(default=240, gt=0)
    """Minutes after which a worker is ended that is still at the same unit of the same stage; null:
    never. Where three units of the source are done, 20 times their median by record is
    enough (at least 10 minutes)."""


class RayConfig(Strict):
    """Where the work runs."""

    address: str | None = None
    """null: start a local Ray; auto: join the cluster of this machine."""
    num_cpus: int | None = Field(default=None, ge=1)
    """CPUs of the local Ray; null: all of the machine."""
    wait_minutes: float = Field(default=0.0, ge=0)
    """How long a run waits for a cluster that adds nodes by itself, until it can hold one worker of
    every stage; 0: a run that the nodes cannot hold is refused at once."""


class PipelineConfig(Strict):
    """The keys at the top of the file, and its sections."""

    run_dir: PathOrUrl
    """Folder or URL of outputs, receipts, shards and checkpoints."""
    seed: int = 0
    """Decides shuffling, packing order and the validation split."""
    engine: Literal["ray", "inline"] = "ray"
    """inline: everything in one process, for debugging."""
    max_quarantine_share: float = Field(default=0.05, ge=0, le=1)
    """Share of all records that may be quarantined; above it the run stops before interleave."""
    sources: SourcesConfig
    plan: PlanConfig = PlanConfig()
    ingest: IngestConfig = IngestConfig()
    score: ScoreConfig = ScoreConfig()
    snac: SnacConfig = SnacConfig()
    encode: EncodeConfig = EncodeConfig()
    transcripts: TranscriptsConfig = TranscriptsConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    interleave: InterleaveConfig = InterleaveConfig()
    train: TrainConfig = TrainConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="before")
    @classmethod
    def _read_missing_sections(cls, data: Any) -> Any:
        """Read a section that is left out like an empty one, so that its paths are resolved."""
        sections = {k: {} for k, f in cls.model_fields.items() if isinstance(f.default, BaseModel)}
        return sections | data if isinstance(data, dict) else data

    @field_validator("sources")
    @classmethod
    def _named_once(cls, sources: SourcesConfig) -> SourcesConfig:
        names = [source.name for source in (*sources.speech, *sources.text)]
        if not names:
            raise ValueError("name at least one speech or text source")
        if len(set(names)) != len(names):
            raise ValueError(f"source names must differ, found {names}")
        if "all" in names:
            raise ValueError("no source may be called all: in statistics it means every source")
        return sources
