"""Single audio files through the models, and documents as audio: `koe score, encode, inspect`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import soundfile

from koe.atomic import atomically
from koe.errors import BadRecord, StorageError
from koe.schema import CLIP
from koe.vocabulary import CODEC_HZ
from pipeline.config.models import PipelineConfig
from pipeline.trace.document import Document
from stages.clips import load_clips
from stages.dnsmos.scorer import DnsmosScorer, find_model
from stages.encode import encode_files
from stages.score import score_files
from stages.settings import Windows
from stages.snac.codec import Codec, clip_seed, codec_of
from stages.text.tokenizer import load_tokenizer


def score_paths(files: Sequence[Path], windows: Windows, threshold: float) -> list[dict[str, Any]]:
    """Score files; one row each, with `error` where a file cannot be scored."""
    scorer = DnsmosScorer(find_model().path, "cpu", num_threads=1)
    return score_files([str(file) for file in files], scorer, windows, threshold)


def encode_paths(files: Sequence[Path], config: PipelineConfig) -> list[dict[str, Any]]:
    """Encode files with the configured codec; `error` where a file cannot be encoded."""
    return encode_files([str(file) for file in files], _codec(config))


def text_decoder(config: PipelineConfig) -> Callable[[list[int]], str]:
    """Return the function that spells text ids out."""
    tokenizer = load_tokenizer(config.tokenize.tokenizer)
    return lambda ids: str(tokenizer.decode(ids))


def make_folder(folder: Path) -> None:
    """Create a folder for audio. Raises: StorageError where it cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_wavs(
    config: PipelineConfig, documents: Sequence[Document], folder: Path, warn: Callable[[str], None]
) -> Iterator[Path]:
    """Write original and reconstruction (24 kHz mono) of every speech document; yield the paths.

    `warn` is told of an original whose source file is gone or cannot be decoded; its
    reconstruction is written nevertheless. Raises: StorageError for what cannot be written.
    """
    codec = _codec(config) if any(document.codes is not None for document in documents) else None
    make_folder(folder)
    for number, document in enumerate(documents):
        digest = hashlib.sha256(document.id.encode()).hexdigest()[:8]
        base = f"{number:03d}-{digest}"
        if document.clip is not None:
            clip = pa.Table.from_pylist([document.clip], schema=CLIP)
            audio = next(iter(load_clips(clip, CODEC_HZ)))
            if isinstance(audio, BadRecord):
                warn(f"the original of {document.id} cannot be read: {audio}")
            else:
                yield _write(folder / f"{base}.original.wav", audio)
        if document.codes is not None and codec is not None:
            decoded = codec.decode(document.codes, clip_seed(document.id, config.snac.seed))
            yield _write(folder / f"{base}.reconstruction.wav", decoded)


def _codec(config: PipelineConfig) -> Codec:
    return Codec.open(codec_of(config.snac))


def _write(path: Path, audio: Any) -> Path:
    encoded = io.BytesIO()
    soundfile.write(encoded, audio, CODEC_HZ, format="WAV")
    try:
        with atomically(path) as file:
            file.write(encoded.getbuffer())
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written",
        error.strerror or str(error),
        "Name a folder that can be created and written to, on a disk with free space.",
    )
