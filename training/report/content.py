"""What the report shows beside its charts: headline figures, events, generated speech."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from koe import numbers
from koe.webpage.page import Tile, cut
from training.logs import SCORES
from training.report.data import GeneratedSamples, Run, number

MAX_DOCUMENTS = 3  # of an event, those of the highest loss
MAX_SOUND_BYTES = 2_000_000  # of audio inside the page
MFUS = ("causal", "full")  # counted with the attention of causal pairs only, or of all


@dataclass(frozen=True)
class Document:
    """A document of an event, and its loss; `place` is where the document stands."""

    loss: str
    id: Any
    place: str


@dataclass(frozen=True)
class Recording:
    """Speech generated for a prompt; without `wav`, `note` says why there is nothing to hear.

    `facts` are the values of what listened to it; `text` is what should be heard and `heard` what
    was, each None where no recogniser listened.
    """

    prompt: str
    wav: bytes = b""
    note: str = ""
    facts: tuple[str, ...] = ()
    text: str | None = None
    heard: str | None = None


def tiles(run: Run) -> list[Tile]:
    """Work out the headline figures; "–" where the logs do not say."""
    column, main = run.metrics.column, run.main
    tokens, norms = _last(column("total_tokens")[main]), column("gradient_norm")
    largest, where = np.nan, ""
    if np.isfinite(norms).any():
        largest = np.nanmax(norms)
        where = f"at step {numbers.count(column('step')[np.nanargmax(norms)])}"
    if odd := sum(name == "gradient_norm" for name, _, _ in run.metrics.not_finite):
        where += f", {odd} not finite"
    kinds = Counter(str(event.get("event")) for event in run.events)
    lowered = kinds["lower_rate"] + kinds["climbing"]
    undone = sum(len(piece) for piece in run.abandoned)
    waits, seconds = column("data_wait_seconds"), column("seconds")
    known = np.isfinite(waits) & np.isfinite(seconds)
    waited, total = waits[known].sum(), seconds[known].sum()
    share = numbers.decimal(100 * waited / total if total > 0 else None, 2, "%")
    speed = numbers.short(_median(column("tokens_per_second")))
    mfu, full = (numbers.decimal(100 * _median(column(f"mfu_{kind}")), 1, "%") for kind in MFUS)
    of_mfu = "device not known" if full == numbers.UNKNOWN else f"causal; full {full}"
    last_step, last_loss = (_last(column(name)[main]) for name in ("step", "loss"))
    return [
        Tile("Steps", numbers.count(last_step), f"and {undone:,} undone" if undone else "applied"),
        Tile("Tokens", numbers.short(tokens), numbers.count(tokens)),
        Tile("Last loss", numbers.decimal(last_loss, 4), "nats per token"),
        _lowest_validation_loss(run),
        Tile("Largest gradient norm", numbers.decimal(largest, 3), where),
        Tile("Steps clipped", numbers.count(run.metrics.actions.count("clip")), "by the guard"),
        Tile("Steps skipped", numbers.count(len(run.skipped)), "gradient not used"),
        Tile("Rollbacks", numbers.count(kinds["roll_back"]), f"learning rate lowered: {lowered}"),
        Tile("Throughput", speed, "tokens/s, median"),
        Tile("MFU", mfu, of_mfu),
        Tile("Waiting for data", share, "of the time"),
    ]


def _lowest_validation_loss(run: Run) -> Tile:
    losses, steps = (run.evaluations.column(name) for name in ("loss", "step"))
    if not np.isfinite(losses).any():
        return Tile("Lowest validation loss", numbers.UNKNOWN, "not measured")
    place = np.nanargmin(losses)
    where = f"at step {numbers.count(steps[place])}"
    average = run.evaluations.column("ema_loss")
    if np.isfinite(average).any():
        where += f"; averaged weights {numbers.decimal(np.nanmin(average), 4)}"
    return Tile("Lowest validation loss", numbers.decimal(losses[place], 4), where)


def about(run: Run) -> str:
    """Say when the run started and was last heard of, as far as its events show."""
    times = [str(event["time"]) for event in run.events if event.get("time")]
    clocks = [time.replace("T", " ").replace("+00:00", " UTC") for time in times]
    starts = sum(event.get("event") == "started" for event in run.events)
    parts = [f"first event {clocks[0]}"] if clocks else []
    parts += [f"last event {clocks[-1]}"] if len(clocks) > 1 else []
    parts += [f"started {starts} times"] if starts > 1 else []
    return ", ".join(["Training report", *parts])


def worst(documents: Any) -> list[Document]:
    """Choose the documents of the highest loss; one that is not finite counts as the highest."""
    if not isinstance(documents, list):
        return []
    known = [d for d in documents if isinstance(d, dict) and d.get("loss")]
    losses = [number(d["loss"]) for d in known]
    order = np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")[:MAX_DOCUMENTS]
    return [
        Document(
            f"{d['loss']:.3f}" if np.isfinite(number(d["loss"])) else str(d["loss"]),
            d.get("id"),
            f"row {cut(d.get('row'))}, {cut(d.get('source'))}",
        )
        for d in (known[place] for place in order)
    ]


def recordings(found: GeneratedSamples) -> list[Recording]:
    """Read the recordings of the samples, as many as the page may hold."""
    made, bytes_left = [], MAX_SOUND_BYTES
    for sample in found.samples:
        wav, note = _sound(found, sample, bytes_left)
        bytes_left -= len(wav)
        prompt = sample.get("prompt")
        name = cut(prompt.get("name") if isinstance(prompt, dict) else prompt)
        text, heard = (
            None if sample.get(key) is None else cut(sample[key]) for key in ("text", "heard")
        )
        made.append(Recording(name, wav, note, _facts(sample), text, heard))
    return made


def _sound(found: GeneratedSamples, sample: dict[str, Any], bytes_left: int) -> tuple[bytes, str]:
    """Read a recording, or say why there is none."""
    path = found.folder / str(sample.get("wav"))
    if not sample.get("wav") or path.parent != found.folder or not path.is_file():
        return b"", "There is no recording."
    if path.stat().st_size > bytes_left:
        return b"", f"Too large for this page: {path.name}"
    return path.read_bytes(), ""


def _facts(sample: dict[str, Any]) -> tuple[str, ...]:
    """Put the values of what listened to a sample into words; none where nothing did."""
    known = [(name, number(sample[name])) for name in SCORES if sample.get(name) is not None]
    facts = [", ".join(f"{name} {numbers.decimal(value, 2)}" for name, value in known)]
    if sample.get("character_error_rate") is not None:
        rate = numbers.decimal(100 * number(sample["character_error_rate"]), 0, "%")
        facts.append(f"character error rate {rate}")
    return tuple(filter(None, facts))


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else np.nan


def _last(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else np.nan
