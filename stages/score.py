"""The score stage: it rates the speech quality of every clip, and keeps every score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from koe.errors import BadRecord, ConfigError
from koe.schema import SCORED
from koe.stage import Exclusions, Outcome, Resources, Transform
from koe.vocabulary import CODEC_HZ
from stages.audio.decode import resample
from stages.clips import load_clips, load_file, location
from stages.dnsmos.engines import describe_engine, ovrl_error, resolve_engine
from stages.dnsmos.scorer import SCORER_HZ, DnsmosModel, DnsmosScorer
from stages.settings import ScoreConfig, Windows
from stages.snac.codec import Codec, CodecSpec, clip_seed
from stages.snac.engines import usual_batch_seconds


@dataclass(frozen=True)
class ScoreStage:
    """Give every clip its scores.

    The scorer `source` takes `source_ovrl` and decodes nothing; any other needs `model`. The signal
    `reconstruction` scores what `codec` makes of the clip and keeps its codes, so that the encode
    stage need not repeat it. `p808` adds the score of that model. The engine of the settings is one
    that `resolve_engine` named, so that all workers compute the same bits.
    """

    settings: ScoreConfig = field(default_factory=ScoreConfig)
    model: DnsmosModel | None = None
    p808: DnsmosModel | None = None
    codec: CodecSpec | None = None
    index_folder: str = ""  # of compressed sources, see `SourceFiles`; decides nothing

    name: str = field(default="score", init=False, repr=False)
    version: int = field(default=3, init=False, repr=False)
    output_schema: pa.Schema = field(default=SCORED, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.settings.scorer == "source":
            return
        if self.model is None:
            raise ConfigError(
                "the score stage has no DNSMOS model", remedy="Use stages.dnsmos.scorer.find_model."
            )
        if self.settings.signal == "reconstruction" and self.codec is None:
            raise ConfigError(
                "score.signal reconstruction needs a codec", remedy="Set snac.weights."
            )

    @property
    def content(self) -> dict[str, Any]:
        if self.model is None:
            return {"scorer": "source"}
        decisive = {"scorer", "signal", "windows", "provider", "precision"}
        content = self.settings.model_dump(include=decisive)
        content |= {"engine": self.settings.engine, "model_sha256": self.model.sha256}
        if self.p808 is not None:
            content["p808_sha256"] = self.p808.sha256
        if self._reconstructs is not None:
            content["codec"] = self._reconstructs.describe()
            content["noise_seed"] = self._reconstructs.seed
        return content

    @property
    def label(self) -> str:
        """Return the `scorer` column: what decides whether two scores can be compared."""
        if self.model is None:
            return "source"
        settings = self.settings
        signal: str = settings.signal
        if self._reconstructs is not None:
            signal = f"{signal} of {self._reconstructs.label}"
        return (
            f"dnsmos-p835 sha256:{self.model.sha256[:8]} windows={settings.windows} "
            f"signal={signal} {settings.precision} provider={settings.provider} "
            f"engine={settings.engine}"
        )

    @property
    def engine_description(self) -> str:
        """Say what the scores are computed with; nothing where the source has them."""
        if self.model is None:
            return ""
        settings = self.settings
        return describe_engine(settings.provider, settings.precision, settings.engine)

    @property
    def decoded_hz(self) -> int:
        """Return the sample rate that clips are decoded to; 0 where none is."""
        if self.model is None:
            return 0
        return SCORER_HZ if self._reconstructs is None else CODEC_HZ

    @property
    def resources(self) -> Resources:
        on_gpu = self.model is not None and self.settings.provider == "cuda"
        codec = self._reconstructs
        return self.settings.resources_with(
            on_gpu or (codec is not None and codec.device == "cuda")
        )

    def with_gpus(self, gpus: float) -> ScoreStage:
        """Return the stage for workers that have this part of a GPU."""
        return replace(self, settings=self.settings.with_gpus(gpus))

    @property
    def ovrl_error(self) -> float:
        """Return how far a score may lie from FP32, which near the threshold decides."""
        if self.model is None:
            return 0.0
        return ovrl_error(self.settings.precision, self.settings.engine)

    def exact(self, on_gpu: bool = True) -> ScoreStage:
        """Return the stage that gives the same scores in FP32; on a CPU where there is no GPU."""
        provider = self.settings.provider if on_gpu else "cpu"
        libraries = self.p808 is not None or self._reconstructs is not None
        engine = resolve_engine("auto", provider, "fp32", libraries)
        changes = {"precision": "fp32", "provider": provider, "engine": engine}
        return replace(self, settings=self.settings.model_copy(update=changes))

    @property
    def _reconstructs(self) -> CodecSpec | None:
        return self.codec if self.settings.signal == "reconstruction" else None

    def open(self) -> Transform:
        """Load the models.

        Raises: ConfigError when a model or provider is absent or not the planned one.
        """
        if self.model is None:
            return partial(_outcome, stage=self, score=_source_scores)
        settings = self.settings
        num_threads = self.resources.threads
        gpu_share = self.resources.gpu_share
        torch.set_num_threads(1)  # resampling is torch's, and must not slow the model down
        scorer = DnsmosScorer(
            self.model.path,
            settings.provider,
            num_threads,
            self.model.sha256,
            settings.precision,
            self.p808,
            settings.engine,
            gpu_share=gpu_share,
        )
        score = partial(
            _model_scores,
            scorer=scorer,
            windows=settings.windows,
            num_threads=num_threads,
            codec=Codec.open(self._reconstructs, gpu_share) if self._reconstructs else None,
            index_folder=self.index_folder,
        )
        return partial(_outcome, stage=self, score=score)


@dataclass(frozen=True)
class _Scored:
    ovrl: float
    windows: int
    sig: float | None = None
    bak: float | None = None
    p808: float | None = None
    codes: np.ndarray | None = None


def _source_scores(clips: pa.Table) -> Iterator[_Scored | BadRecord]:
    for ovrl in clips["source_ovrl"].to_pylist():
        if ovrl is None or not math.isfinite(ovrl):
            yield BadRecord("missing_score", f"source_ovrl is {'null' if ovrl is None else ovrl}")
        else:
            yield _Scored(ovrl, windows=0)


def _model_scores(
    clips: pa.Table,
    scorer: DnsmosScorer,
    windows: Windows,
    num_threads: int,
    codec: Codec | None,
    index_folder: str,
) -> Iterator[_Scored | BadRecord]:
    """Yield in order the score of each clip, or with `codec` of what it makes of the clip."""
    results: dict[int, _Scored | BadRecord] = {}
    codes: dict[int, np.ndarray] = {}
    names: list[str] = clips["id"].to_pylist()

    def sound() -> Iterator[tuple[int, np.ndarray]]:
        audios = load_clips(clips, CODEC_HZ if codec else SCORER_HZ, num_threads, index_folder)
        for row, audio in enumerate(audios):
            if isinstance(audio, BadRecord):
                results[row] = audio
            else:
                yield row, audio

    heard = _reconstructed(sound(), codec, names, codes) if codec else sound()
    for row, scores in scorer.score_each(((row, names[row], x) for row, x in heard), windows):
        results[row] = _Scored(**asdict(scores), codes=codes.get(row))
    for row in range(clips.num_rows):
        yield results[row]


def _reconstructed(
    clips: Iterable[tuple[int, np.ndarray]],
    codec: Codec,
    names: Sequence[str],
    codes: dict[int, np.ndarray],
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield what the codec makes of clips, at the rate of the scorer; their codes go to `codes`.

    Clips are encoded at once where encode does so, and come in no particular order. They are decoded
    one by one: the noise in a clip's decoder is drawn from a seed of its own.
    """
    lengths: dict[int, int] = {}

    def counted() -> Iterator[tuple[int, np.ndarray]]:
        for row, audio in clips:
            lengths[row] = len(audio)
            yield row, audio

    at_once = int(usual_batch_seconds(codec.spec.engine, codec.spec.device) * CODEC_HZ)
    for row, found in codec.stream(counted(), at_once, names):
        codes[row] = found
        decoded = codec.decode(found, clip_seed(names[row], codec.spec.seed), names[row])
        yield row, resample(decoded[: lengths.pop(row)], CODEC_HZ, SCORER_HZ)


def _outcome(clips: pa.Table, *, stage: ScoreStage, score) -> Outcome:
    """Run `score`, which yields one result per row, and split kept from quarantined."""
    exclusions = Exclusions(ScoreStage.name)
    kept: list[int] = []
    results: list[_Scored] = []
    for row, result in enumerate(score(clips)):
        if isinstance(result, BadRecord):
            clip = clips.slice(row, 1).to_pylist()[0]
            exclusions.quarantine(clip["id"], clip["source"], result, location(clip))
        else:
            kept.append(row)
            results.append(result)
    return exclusions.outcome(_scored_table(clips, kept, results, stage))


def _scored_table(
    clips: pa.Table, kept: Sequence[int], results: Sequence[_Scored], stage: ScoreStage
) -> pa.Table:
    columns = [
        *clips.take(pa.array(kept, pa.int64())).columns,
        *(
            pa.array([getattr(result, name) for result in results], SCORED.field(name).type)
            for name in ("sig", "bak", "ovrl", "p808", "windows")
        ),
        pa.array([stage.ovrl_error] * len(results), pa.float64()),
        pa.array([stage.label] * len(results), pa.string()),
        pa.array([result.codes for result in results], SCORED.field("codes").type),
    ]
    return pa.Table.from_arrays(columns, schema=SCORED)


def score_files(
    paths: Iterable[str], scorer: DnsmosScorer, windows: Windows, threshold_ovrl: float
) -> list[dict[str, Any]]:
    """Score complete audio files, in order.

    Returns dictionaries of path, seconds, windows, sig, bak, ovrl, keep, and p808 if asked for; or
    of path, error for a file that cannot be scored.
    Raises: StageError when the model itself fails.
    """
    return [_score_file(path, scorer, windows, threshold_ovrl) for path in paths]


def _score_file(
    path: str, scorer: DnsmosScorer, windows: Windows, threshold_ovrl: float
) -> dict[str, Any]:
    try:
        audio, seconds = load_file(path, SCORER_HZ)
        scores = scorer.score(audio, windows, path)
    except BadRecord as bad:
        return {"path": path, "error": str(bad)}
    return {
        "path": path,
        "seconds": seconds,
        "windows": scores.windows,
        "sig": scores.sig,
        "bak": scores.bak,
        "ovrl": scores.ovrl,
        **({} if scores.p808 is None else {"p808": scores.p808}),
        "keep": scores.ovrl > threshold_ovrl,
    }
