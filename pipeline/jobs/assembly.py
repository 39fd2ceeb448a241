"""Builds the sources and stages that a configuration describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from koe.stage import Stage
from pipeline.config.models import PipelineConfig
from pipeline.run_dir.ledger import Receipt
from stages.dnsmos.engines import require_precision, resolve_engine
from stages.dnsmos.onnx_session import require_provider
from stages.dnsmos.scorer import P808_FILE, DnsmosModel, find_model
from stages.encode import EncodeStage
from stages.ingest import IngestStage
from stages.interleave import OrderStage
from stages.native.repeatable import require_gpu
from stages.score import ScoreStage
from stages.settings import InterleaveSettings
from stages.snac.codec import CodecSpec, codec_of
from stages.sources.base import SpeechFiles, TextFiles
from stages.sources.files.source_index import index_folder
from stages.sources.readers import speech_source, text_source
from stages.text.tokenizer import TextTokenizer, load_tokenizer, text_tokenizer
from stages.tokenize import TokenizeSpeech, TokenizeText


def _reading_of(source: BaseModel) -> dict[str, Any]:
    """Return the settings of a source; a key that came later is left out where it changes nothing."""
    given = source.model_dump(exclude={"paths"})
    return {key: value for key, value in given.items() if (key, value) != ("allow_outside", False)}


@dataclass(frozen=True)
class Assembly:
    """Sources and stages as the configuration describes them.

    Each part is built when it is first used, so that running one stage requires only its models.
    """

    config: PipelineConfig

    @property
    def index_folder(self) -> str:
        """Where the checkpoints of compressed sources are kept."""
        return index_folder(self.config.run_dir)

    @cached_property
    def speech_sources(self) -> tuple[SpeechFiles, ...]:
        return tuple(
            speech_source(item, self.config.plan.clips_per_unit, self.index_folder)
            for item in self.config.sources.speech
        )

    @cached_property
    def text_sources(self) -> dict[str, TextFiles]:
        return {
            item.name: text_source(item, self.config.plan.samples_per_unit, self.index_folder)
            for item in self.config.sources.text
        }

    @cached_property
    def reading(self) -> dict[str, dict[str, Any]]:
        """Everything that decides how a source's files are sliced and read, by the source's name."""
        plan = self.config.plan  # under the names that fingerprints of earlier runs have
        sizes = {"unit_clips": plan.clips_per_unit, "unit_samples": plan.samples_per_unit}
        settings = (*self.config.sources.speech, *self.config.sources.text)
        return {item.name: {**_reading_of(item), **sizes} for item in settings}

    def check_sources(self) -> None:
        """List the files of all sources, before anything is planned, loaded or downloaded.

        Raises: ConfigError when a path matches nothing, or files cannot be read as they are.
        """
        for source in (*self.speech_sources, *self.text_sources.values()):
            source.files()

    @cached_property
    def codec(self) -> CodecSpec:
        return codec_of(self.config.snac)

    @cached_property
    def scorer(self) -> DnsmosModel:
        settings = self.config.score
        require_precision(settings.precision, settings.provider)
        engine = resolve_engine(settings.engine, settings.provider, settings.precision)
        if settings.p808 or not (engine == "torch" and settings.provider == "cuda"):
            require_provider(settings.provider)
        elif self.config.ray.address is None:  # the workers are on this machine
            require_gpu("score.provider")
        return find_model(self.config.score.model)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return text_tokenizer(load_tokenizer(self.config.tokenize.tokenizer))

    def speech_stage(self, name: str) -> Stage:
        """Build a stage of the speech chain. Raises: KeyError for one that nothing builds."""
        return SPEECH_STAGES[name](self)

    def text_stage(self, name: str, source: str) -> Stage:
        """Build a stage of the text chain for a source. Raises: KeyError as `speech_stage`."""
        return TEXT_STAGES[name](self, source)

    def ingest(self) -> Stage:
        return IngestStage(self.speech_sources, self.config.ingest)

    def score(self) -> ScoreStage:
        settings = self.config.score
        if settings.scorer == "source":
            return ScoreStage(settings)
        libraries = (
            settings.p808 or settings.signal == "reconstruction"
        )  # SNAC's decoder is torch's
        engine = resolve_engine(settings.engine, settings.provider, settings.precision, libraries)
        return ScoreStage(
            settings.model_copy(update={"engine": engine}),
            model=self.scorer,
            p808=find_model(None, P808_FILE) if settings.p808 else None,
            codec=self.codec if settings.signal == "reconstruction" else None,
            index_folder=self.index_folder,
        )

    def encode(self) -> EncodeStage:
        # Built only where scores are inexact: otherwise encoding must not require the DNSMOS model.
        inexact = self.config.score.precision != "fp32"
        rescores = inexact and self.config.score.scorer == "dnsmos"
        # They are computed by workers of encode, which may have no GPU where those of score do.
        on_gpu = self.config.encode.gpus_per_worker > 0
        exact_scores = self.score().exact(on_gpu) if rescores else None
        return EncodeStage(self.codec, self.config.encode, exact_scores, self.index_folder)

    def tokenize_speech(self) -> Stage:
        return TokenizeSpeech(self.tokenizer, self.config.tokenize, self.config.transcripts)

    def tokenize_text(self, source: str) -> Stage:
        return TokenizeText(self.tokenizer, self.config.tokenize, source=self.text_sources[source])

    def order(self, before: Receipt | None = None) -> OrderStage:
        """Build the stage of the order; `before` is the receipt of the order that is there.

        A tokenizer is known by its SHA-256: in another folder it keeps the name that it has there.
        """
        tokenizer = {"name": self.config.tokenize.tokenizer, "sha256": self.tokenizer.sha256}
        known = before.content.get("tokenizer", {}) if before else {}
        if tokenizer["name"].startswith("/") and known.get("sha256") == tokenizer["sha256"]:
            tokenizer = known
        section = dict(self.config.interleave)
        return OrderStage(
            # Unvalidated, since receipts tell a default (256) from the same value given (256.0).
            settings=InterleaveSettings.model_construct(
                **section, seed=self.config.seed, transcripts=self.config.transcripts
            ),
            identity={
                "codec": self.codec.describe() if self.config.sources.speech else {},
                "tokenizer": tokenizer,
            },
        )


# The builders of the stages that koe/dataflow.py declares.
SPEECH_STAGES: dict[str, Callable[[Assembly], Stage]] = {
    "ingest": Assembly.ingest,
    "score": Assembly.score,
    "encode": Assembly.encode,
    "tokenize": Assembly.tokenize_speech,
}
TEXT_STAGES: dict[str, Callable[[Assembly, str], Stage]] = {"tokenize": Assembly.tokenize_text}
