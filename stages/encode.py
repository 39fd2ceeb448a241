"""The encode stage: it turns clips that score above the threshold into SNAC codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from koe.errors import BadRecord, ContractError
from koe.schema import CLIP, ENCODED
from koe.stage import Exclusions, Outcome, Resources, SharesGpu, Stage, Transform
from koe.vocabulary import CODEC_HZ, SLOTS, unflatten_codes
from stages.clips import load_clips, load_file, location
from stages.settings import EncodeConfig
from stages.snac.codec import Codec, CodecSpec
from stages.snac.engines import describe_engine, usual_batch_seconds


@dataclass(frozen=True)
class EncodeStage:
    """Reject clips that do not score above the threshold, and encode the others.

    `exact_scores` is the score stage in FP32: it scores those clips again whose `ovrl_error`
    reaches across the threshold, so that no decision differs from FP32, and moving the threshold
    scores only the clips near the new one.
    """

    codec: CodecSpec
    settings: EncodeConfig = field(default_factory=EncodeConfig)
    exact_scores: Stage | None = None
    index_folder: str = ""  # of compressed sources, see `SourceFiles`; decides nothing

    name: str = field(default="encode", init=False, repr=False)
    version: int = field(default=3, init=False, repr=False)
    output_schema: pa.Schema = field(default=ENCODED, init=False, repr=False)

    @property
    def content(self) -> dict[str, Any]:
        threshold = self.settings.threshold_ovrl
        content = {"threshold_ovrl": threshold, "codec": self.codec.describe()}
        if self.exact_scores is not None:
            content["exact_scores"] = self.exact_scores.content
        return content

    @property
    def resources(self) -> Resources:
        rescores_on_gpu = self.exact_scores is not None and self.exact_scores.resources.gpus > 0
        return self.settings.resources_with(self.codec.device == "cuda" or rescores_on_gpu)

    def with_gpus(self, gpus: float) -> EncodeStage:
        """Return the stage for workers that have this part of a GPU, for scoring again too."""
        scores = self.exact_scores
        if isinstance(scores, SharesGpu):
            scores = scores.with_gpus(gpus)
        return replace(self, settings=self.settings.with_gpus(gpus), exact_scores=scores)

    @property
    def engine_description(self) -> str:
        """Say what the codes are computed with."""
        return describe_engine(self.codec.device, self.codec.engine)

    @property
    def batch_seconds(self) -> float:
        """Return how much audio is encoded at once; 0: clip by clip."""
        if self.settings.batch_seconds is not None:
            return self.settings.batch_seconds
        return usual_batch_seconds(self.codec.engine, self.codec.device)

    def open(self) -> Transform:
        """Load the codec.

        Raises: ConfigError when its weights or device are absent or not the planned ones.
        """
        codec = Codec.open(self.codec, self.resources.gpu_share)
        return partial(
            _encode,
            codec=codec,
            rescore=_opened_late(self.exact_scores),
            threshold_ovrl=self.settings.threshold_ovrl,
            batch_samples=int(self.batch_seconds * CODEC_HZ),
            num_threads=self.resources.threads,
            index_folder=self.index_folder,
        )


def _opened_late(stage: Stage | None) -> Transform | None:
    """Return the stage's transform, which loads its models when a clip first needs them."""
    if stage is None:
        return None
    opened = cache(stage.open)
    return lambda clips: opened()(clips)


def _encode(
    clips: pa.Table,
    *,
    codec: Codec,
    rescore: Transform | None,
    threshold_ovrl: float,
    batch_samples: int,
    num_threads: int,
    index_folder: str,
) -> Outcome:
    exclusions = Exclusions(EncodeStage.name)
    settled = _settle_scores(clips, threshold_ovrl, rescore, exclusions)
    passed = _reject_low(settled, threshold_ovrl, exclusions)
    results = _encode_clips(passed, codec, batch_samples, num_threads, index_folder)
    codes = {row: result for row, result in results.items() if isinstance(result, np.ndarray)}
    for row, result in sorted(results.items(), key=lambda item: item[0]):
        if isinstance(result, BadRecord):
            clip = passed.slice(row, 1).to_pylist()[0]
            exclusions.quarantine(clip["id"], clip["source"], result, location(clip))
    return exclusions.outcome(_encoded_table(passed, codes))


def _settle_scores(
    clips: pa.Table, threshold_ovrl: float, rescore: Transform | None, exclusions: Exclusions
) -> pa.Table:
    """Return the clips, those scored again whose error could decide; same order.

    Raises: ContractError when there are such clips and nothing to score them with.
    """
    distance = np.abs(clips["ovrl"].to_numpy() - threshold_ovrl)
    error = clips["ovrl_error"].to_numpy()
    near = np.flatnonzero((error > 0) & (distance <= error))
    if not len(near):
        return clips
    if rescore is None:
        raise ContractError(
            f"the scores of {len(near)} clips lie within their error of the threshold",
            "the stage has no scorer in FP32",
            "Give it one with exact_scores.",
        )
    outcome = rescore(clips.take(pa.array(near)).select(CLIP.names))
    for row in pa.concat_tables([outcome.rejected, outcome.quarantined]).to_pylist():
        bad = BadRecord(row["reason"], row["detail"])
        exclusions.quarantine(row["id"], row["source"], bad, row["location"])
    places = np.arange(clips.num_rows)
    again = iter(enumerate(outcome.kept["id"].to_pylist(), start=clips.num_rows))
    place, clip_id = next(again, (-1, None))
    for row in near.tolist():  # kept clips come in their order, less those quarantined
        if clips["id"][row].as_py() == clip_id:
            places[row] = place
            place, clip_id = next(again, (-1, None))
        else:
            places[row] = -1
    return pa.concat_tables([clips, outcome.kept]).take(pa.array(places[places >= 0]))


def _reject_low(clips: pa.Table, threshold_ovrl: float, exclusions: Exclusions) -> pa.Table:
    above = clips["ovrl"].to_numpy() > threshold_ovrl
    for clip in clips.filter(pa.array(~above)).drop_columns("codes").to_pylist():
        exclusions.reject(
            clip["id"],
            clip["source"],
            "below_threshold",
            f"ovrl {clip['ovrl']:.3f} <= {threshold_ovrl}",
            location(clip),
        )
    return clips.filter(pa.array(above))


def _encode_clips(
    clips: pa.Table, codec: Codec, batch_samples: int, num_threads: int, index_folder: str
) -> dict[int, np.ndarray | BadRecord]:
    """Return the codes of every row, or the reason why it has none.

    Rows that the score stage encoded already keep their codes and are not read.
    """
    results: dict[int, np.ndarray | BadRecord] = {
        row: codes.values.to_numpy() for row, codes in enumerate(clips["codes"]) if codes.is_valid
    }
    rows = [row for row in range(clips.num_rows) if row not in results]
    unread = clips.take(pa.array(rows, pa.int64()))

    def sound() -> Iterator[tuple[int, np.ndarray]]:
        audios = load_clips(unread, CODEC_HZ, num_threads, index_folder)
        for row, audio in zip(rows, audios, strict=True):
            if isinstance(audio, BadRecord):
                results[row] = audio
            else:
                yield row, audio

    results.update(codec.stream(sound(), batch_samples, clips["id"].to_pylist()))
    return results


def _encoded_table(clips: pa.Table, codes: dict[int, np.ndarray]) -> pa.Table:
    kept = clips.take(pa.array(sorted(codes), pa.int64()))
    ordered = [codes[row] for row in sorted(codes)]
    frames = pa.array([len(flat) // SLOTS for flat in ordered], pa.int32())
    columns = [
        *kept.drop_columns("codes").columns,
        frames,
        pa.array(ordered, ENCODED.field("codes").type),
    ]
    return pa.Table.from_arrays(columns, schema=ENCODED)


def encode_files(paths: Iterable[str], codec: Codec) -> list[dict[str, Any]]:
    """Encode complete audio files, in order.

    Returns dictionaries of path, frames, codes (three lists, one per codebook); or of path, error
    for a file that cannot be decoded.
    """
    return [_encode_file(path, codec) for path in paths]


def _encode_file(path: str, codec: Codec) -> dict[str, Any]:
    try:
        audio, _ = load_file(path, CODEC_HZ)
    except BadRecord as bad:
        return {"path": path, "error": str(bad)}
    (codes,) = codec.encode([audio], path)
    return {
        "path": path,
        "frames": len(codes) // SLOTS,
        "codes": [codebook.tolist() for codebook in unflatten_codes(codes)],
    }
