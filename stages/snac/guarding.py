"""How the codec is run: without gradients, repeatably, and with errors that name the clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from koe.errors import StageError
from stages.native.repeatable import deterministic_inference


@dataclass
class Attempt:
    """What is being done, and of which clips; errors say so. It may become less as memory lacks."""

    doing: str
    clip_id: str

    def now(self, doing: str, clip_id: str) -> None:
        self.doing, self.clip_id = doing, clip_id

    def failed(self, why: str, remedy: str) -> StageError:
        what = f"SNAC could not {self.doing} of clip {self.clip_id!r}"
        return StageError(what, why, remedy, clip_id=self.clip_id)


@contextmanager
def guarded(attempt: Attempt, tf32: bool = False) -> Iterator[None]:
    """Run the model without gradients, repeatably, and name the clip if torch fails.

    Products are in FP32, or in TF32 where that was asked for.
    """
    try:
        with deterministic_inference(tf32):
            yield
    except StageError as error:  # a single clip found no memory
        raise attempt.failed(error.why, error.remedy) from error
    except RuntimeError as error:  # torch's out-of-memory errors are RuntimeErrors too
        raise attempt.failed(
            str(error).strip(),
            "If memory ran out, lower encode.batch_seconds or ingest.max_seconds, or give the "
            "stage fewer workers; the unit can be resumed.",
        ) from error


def named(names: Sequence[str], clips: Iterable[int]) -> str:
    """Join the names of clips, each once."""
    return ", ".join(dict.fromkeys(names[clip] for clip in clips))
