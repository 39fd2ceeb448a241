"""Writes the speech of an evaluation: WAV files, what was checked of them, and what was heard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from koe.errors import StorageError
from koe.vocabulary import CODEC_HZ
from training.config import TrainConfig
from training.data.shard_rows import ShardRows
from training.generation import (
    Decoder,
    Grammar,
    SampleGenerator,
    Speech,
    generate,
    grammar,
    valid_codes,
    validation_prompts,
)
from training.listening import Listener, Listening
from training.logs import SAMPLES_FILE, SAMPLES_FOLDER
from training.model.distributed import Ranks
from training.step import compute_precision


def speak(
    model: nn.Module,
    rows: ShardRows,
    ranks: Ranks,
    config: TrainConfig,
    generator: SampleGenerator | None,
    out_dir: Path,
    steps: int,
    board: SummaryWriter | None,
) -> dict[str, Any] | None:
    """Generate, check and write speech after `steps` steps; every rank must call it.

    Returns the summary on rank 0 (see `write_samples`); None elsewhere and without any prompt.
    """
    generator = generator or SampleGenerator()
    prompts = [*validation_prompts(rows, config.evaluation.prompts), *generator.prompts]
    precision = compute_precision(model, ranks.device.type, config.precision)
    speeches = generate(model, prompts, config.evaluation, config.seed, ranks, precision)
    if not speeches or not ranks.is_main:
        return None
    return write_samples(out_dir, steps, speeches, generator, board)


def write_samples(
    out_dir: Path,
    steps: int,
    speeches: Sequence[Speech],
    generator: SampleGenerator,
    board: SummaryWriter | None,
) -> dict[str, Any]:
    """Write `samples/step-XXXXXXXX/`: samples.json, and a WAV of each that starts with a valid frame.

    Returns a summary: step, codec (the decoder's label, None without one), prompts, frames,
    valid_share (of all frames), ended_share, the folder within `out_dir`, and what `Listening` sums
    up where there is a listener. Raises: StorageError.
    """
    decoder = generator.decoder
    listening = Listening(generator.listener or Listener())
    grammars = [grammar(speech.ids) for speech in speeches]
    folder = f"{SAMPLES_FOLDER}/step-{steps:08d}"
    summary: dict[str, Any] = {
        "step": steps,
        "codec": decoder.label if decoder else None,
        "prompts": len(speeches),
        "folder": folder,
        **_shares(grammars),
    }
    with _writing(out_dir / folder) as path:
        samples = []
        for number, (speech, found) in enumerate(zip(speeches, grammars, strict=True)):
            audio = _decoded(speech, decoder)
            name = None if audio is None else f"{number:02d}.wav"
            if audio is not None and name:
                soundfile.write(path / name, audio, CODEC_HZ)
                if board:
                    board.add_audio(f"samples/{number:02d}", audio, steps, CODEC_HZ)
            heard = listening(speech.prompt.ids, audio)
            samples.append({**asdict(speech), "grammar": asdict(found), "wav": name, **heard})
        summary |= listening.summary
        text = json.dumps({**summary, "samples": samples}, ensure_ascii=False)
        (path / SAMPLES_FILE).write_text(text, encoding="utf-8")
    for name in ("valid_share", "ended_share", *listening.summary):
        if board and summary[name] is not None:
            board.add_scalar(f"samples/{name}", summary[name], steps)
    return summary


def _shares(grammars: Sequence[Grammar]) -> dict[str, Any]:
    frames = sum(found.frames for found in grammars)
    return {
        "frames": frames,
        "valid_share": sum(found.valid_frames for found in grammars) / frames if frames else 0.0,
        "ended_share": sum(found.ended for found in grammars) / max(1, len(grammars)),
    }


def _decoded(speech: Speech, decoder: Decoder | None) -> np.ndarray | None:
    """Decode the valid frames that a sample starts with; None where there are none."""
    codes = valid_codes(speech.ids)
    return np.clip(decoder(codes), -1.0, 1.0) if decoder and len(codes) else None


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """Make an empty folder for samples. Raises: StorageError when files cannot be written there."""
    try:
        shutil.rmtree(folder, ignore_errors=True)  # from the same step before a rollback
        folder.mkdir(parents=True)
        yield folder
    except (OSError, soundfile.LibsndfileError) as error:
        raise StorageError(
            f"the samples in {folder} cannot be written",
            str(error),
            "Free or mount the disk and start again: the run resumes from its last checkpoint.",
        ) from error
