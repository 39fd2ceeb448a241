"""Judges generated speech by ear: how good it sounds, and whether its prompt can be heard in it.

Nothing here may end a run: whatever a model of others raises is said and written down, and the
value is missing.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from koe.vocabulary import CODEC_HZ
from training.logs import SCORES
from training.metrics import say

T = TypeVar("T")


@dataclass(frozen=True)
class Listener:
    """What listens to generated speech; picklable. Audio is float32 [samples] at 24 kHz, mono."""

    score: Callable[[np.ndarray], dict[str, float]] | None = None
    """Returns `SCORES` of a recording, each from 1 to 5."""
    recognise: Callable[[np.ndarray], str] | None = None
    """Returns what is said in a recording."""
    text_of: Callable[[Sequence[int]], str] | None = None
    """Returns what should be said after a prompt, from its ids; needed beside `recognise`."""


class Recogniser:
    """A speech recogniser of the Hugging Face hub or of a folder, on the CPU.

    Picklable: the model is loaded at the first call. One that cannot be loaded is not tried again, since
    a hub that is out of reach takes a minute to say so, and all ranks wait.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._pipeline: Any = None
        self._failure: Exception | None = None

    def __reduce__(self):
        return Recogniser, (self.name,)

    def __call__(self, audio: np.ndarray) -> str:
        """Write down what is said, with all CPUs. Raises: whatever transformers does."""
        if self._failure:
            raise self._failure
        torch.set_num_threads(os.cpu_count() or 1)  # nothing else is computed meanwhile
        if self._pipeline is None:
            self._pipeline = self._load()
        found = self._pipeline({"raw": audio, "sampling_rate": CODEC_HZ})
        return str(found["text"])

    def _load(self) -> Any:
        from transformers import pipeline

        try:
            return pipeline("automatic-speech-recognition", self.name, device="cpu")
        except Exception as error:
            self._failure = error
            raise


class Listening:
    """One evaluation's judgements: call it with each sample, then read `summary`."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._said: set[str] = set()
        self._scores: list[dict[str, float]] = []
        self._edits, self._characters = 0, 0

    def __call__(self, prompt_ids: Sequence[int], audio: np.ndarray | None) -> dict[str, Any]:
        """Judge one sample; `audio` is None where nothing could be decoded.

        Returns the scores, what should be and was heard, and the character error rate, each None
        where it is not known. Silence is an error rate of 1, since nothing of the prompt is heard.
        """
        with undisturbed():
            return self._scored(audio) | self._recognised(prompt_ids, audio)

    @property
    def summary(self) -> dict[str, float | None]:
        """The means of the scores, and the edits of all samples by the characters of all prompts."""
        found: dict[str, float | None] = {}
        if self._listener.score:
            for name in SCORES:
                values = [scores[name] for scores in self._scores]
                found[name] = float(np.mean(values)) if values else None
        if self._listener.recognise:
            rate = self._edits / self._characters if self._characters else None
            found["character_error_rate"] = rate
        return found

    def _scored(self, audio: np.ndarray | None) -> dict[str, Any]:
        score = self._listener.score
        if score is None:
            return {}
        scores = self._attempt("DNSMOS", lambda: score(audio)) if audio is not None else None
        if scores:
            self._scores.append(scores)
        return {name: scores[name] if scores else None for name in SCORES}

    def _recognised(self, prompt_ids: Sequence[int], audio: np.ndarray | None) -> dict[str, Any]:
        recognise, text_of = self._listener.recognise, self._listener.text_of
        if recognise is None or text_of is None:
            return {}
        text = self._attempt("reading the prompt", lambda: text_of(prompt_ids))
        heard = (
            self._attempt("the recogniser", lambda: recognise(audio)) if audio is not None else ""
        )
        rate = None
        if text is not None and heard is not None and (wanted := spoken_characters(text)):
            edits = Levenshtein.distance(wanted, spoken_characters(heard))
            self._edits, self._characters = self._edits + edits, self._characters + len(wanted)
            rate = edits / len(wanted)
        return {"text": text, "heard": heard, "character_error_rate": rate}

    def _attempt(self, name: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        # A model of others may raise anything, and the run must go on without its opinion.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            message = f"{name} failed: {type(error).__name__}: {reason}"
            if message not in self._said:
                say(f"listening to samples: {message}; training goes on")
            self._said.add(message)
            return None


def spoken_characters(text: str) -> str:
    """Keep what is spoken of a text: letters, marks and digits, in one form and case (NFKC)."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    spoken = "".join(letter for letter in folded if unicodedata.category(letter)[0] in "LMN")
    return unicodedata.normalize("NFKC", spoken)  # marks that have come to stand side by side


@contextmanager
def undisturbed() -> Iterator[None]:
    """Give torch's threads and random state back as they were: the process trains a model."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
