"""From one stage to the next: no record appears or vanishes, and carried columns do not change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from koe.errors import ContractError
from koe.schema import CLIP, SCORED
from koe.vocabulary import CODEBOOK_SIZE, SLOTS
from pipeline.verify.lists import flat, lengths, offsets, places_in

_SCORES = [name for name in SCORED.names if name not in (*CLIP.names, "codes")]


def prove_ids(
    before: pa.Table | None, kept: pa.Table, excluded: pa.Table, path: str, remedy: str
) -> np.ndarray:
    """Prove that a unit's records are those of its input, each once; int64 [kept].

    Returns the rows of `before` that were kept. Without `before` (the input is a source file) only
    the ids of `kept` are proved to differ. Raises: ContractError naming row and id.
    """
    _require_distinct(kept["id"], path, remedy)
    if before is None:
        return np.empty(0, np.int64)
    known = before["id"].combine_chunks()
    rows = places_in(kept["id"], known)
    left_out = places_in(excluded["id"], known)
    _require_known(rows, kept["id"], path, remedy)
    _require_known(left_out, excluded["id"], f"the excluded table of {path}", remedy)
    times = np.bincount(np.concatenate([rows, left_out]), minlength=len(known))
    if (times != 1).any():
        row = int(np.argmax(times != 1))
        raise ContractError(
            f"{path} does not account for {known[row].as_py()} exactly once",
            f"row {row} of its input occurs {int(times[row])} times in the output and its excluded "
            "table",
            remedy,
        )
    if (np.diff(rows) < 0).any():
        row = int(np.argmax(np.diff(rows) < 0)) + 1
        raise ContractError(
            f"{path}:{row} is out of order", "a stage keeps the order of its input", remedy
        )
    return rows


def prove_carried(
    before: pa.Table,
    rows: np.ndarray,
    kept: pa.Table,
    columns: Sequence[str],
    path: str,
    remedy: str,
    made_anew: np.ndarray | None = None,
) -> None:
    """Prove that a stage left columns as they were.

    `rows`: those of `before` that `kept` was made of, int64 [kept]; `made_anew` excepts rows of
    `kept`, bool [kept].
    """
    places = np.arange(len(rows)) if made_anew is None else np.flatnonzero(~made_anew)
    was_all = before.select(columns).take(pa.array(rows[places]))
    now_all = kept.select(columns).take(pa.array(places))
    for name in columns:
        was, now = was_all[name], now_all[name]
        if was.equals(now):
            continue
        for row, old, new in zip(places.tolist(), was.to_pylist(), now.to_pylist(), strict=True):
            both_nan = old != old and new != new
            if old != new and not both_nan:
                raise ContractError(
                    f"{path}:{row} ({kept['id'][row].as_py()}) has another {name} than its input",
                    f"{new!r:.80} was {old!r:.80}",
                    remedy,
                )


def prove_scores_kept(
    scored: pa.Table, rows: np.ndarray, kept: pa.Table, rescores: bool, path: str, remedy: str
) -> None:
    """Prove that encode changed no score but the inexact ones that it computed again in FP32.

    Codes that the score stage had made already must be kept too.
    """
    was = scored["ovrl_error"].to_numpy()[rows]
    again = (was > 0) & (kept["ovrl_error"].to_numpy() == 0) & rescores
    prove_carried(scored, rows, kept, _SCORES, path, remedy, again)
    absent = scored["codes"].take(pa.array(rows)).is_null().to_numpy()
    prove_carried(scored, rows, kept, ["codes"], path, remedy, absent)


def prove_threshold(
    scored: pa.Table, kept: pa.Table, excluded: pa.Table, threshold: float, path: str, remedy: str
) -> None:
    """Prove that the threshold of the receipt alone decided which clips were kept."""
    ovrl = kept["ovrl"].to_numpy()
    if not (ovrl > threshold).all():
        row = int(np.argmin(ovrl > threshold))
        raise ContractError(
            f"{path}:{row} ({kept['id'][row].as_py()}) was kept with ovrl {ovrl[row]:.4f}",
            f"its receipt names the threshold {threshold}",
            remedy,
        )
    rejected = excluded.filter(pc.field("reason") == "below_threshold")["id"]
    rows = places_in(rejected, scored["id"].combine_chunks())
    least = scored["ovrl"].to_numpy()[rows] - scored["ovrl_error"].to_numpy()[rows]
    if (least > threshold).any():
        row = int(np.argmax(least > threshold))
        raise ContractError(
            f"{rejected[row].as_py()} was rejected by {path} with ovrl {least[row]:.4f} or more",
            f"its receipt names the threshold {threshold}",
            remedy,
        )


def prove_encoded(kept: pa.Table, path: str, remedy: str) -> None:
    """Prove that each clip has 7 codes per frame, all in range."""
    frames = kept["frames"].to_numpy()
    sizes = lengths(kept["codes"])
    wrong = (sizes != SLOTS * frames.astype(np.int64)) | (frames < 1)
    codes = flat(kept["codes"]).to_numpy()
    if not wrong.any() and codes.max(initial=0) >= CODEBOOK_SIZE:
        place = np.argmax(codes >= CODEBOOK_SIZE)
        wrong[np.searchsorted(offsets(sizes), place, side="right") - 1] = True
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ContractError(
            f"{path}:{row} ({kept['id'][row].as_py()}) holds {int(sizes[row])} codes for its "
            f"{int(frames[row])} frames",
            f"a frame has {SLOTS} codes of 0..{CODEBOOK_SIZE - 1}",
            remedy,
        )


def prove_codes(
    encoded: pa.Table,
    rows: np.ndarray,
    frames: np.ndarray,
    codes: np.ndarray,
    drops_repeats: bool,
    path: str,
    remedy: str,
) -> None:
    """Prove that samples hold the codes that encode stored.

    `rows`: those of `encoded` that the samples were made of, int64 [n]; `frames`: of the samples,
    int64 [n]; `codes`: int [sum of frames, 7]. With `drops_repeats` a frame whose first code is
    that of the frame before it must be gone, and only those.
    """
    taken = encoded["codes"].take(pa.array(rows))
    grid = flat(taken).to_numpy().reshape(-1, SLOTS)
    sizes = lengths(taken) // SLOTS
    if drops_repeats:
        keep = np.ones(len(grid), bool)
        keep[1:] = grid[1:, 0] != grid[:-1, 0]
        keep[offsets(sizes)[:-1]] = True  # the first frame of a clip
        sizes = np.add.reduceat(keep, offsets(sizes)[:-1], dtype=np.int64) if len(sizes) else sizes
        grid = grid[keep]
    wrong = frames != sizes
    if not wrong.any() and not np.array_equal(grid, codes):
        wrong[np.repeat(np.arange(len(sizes)), sizes)[(grid != codes).any(axis=1)]] = True
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ContractError(
            f"{path}:{row} holds other codes than encode stored",
            f"{int(frames[row])} frames of clip {encoded['id'][int(rows[row])].as_py()}, whose "
            f"{int(sizes[row])} frames {'without repeats ' if drops_repeats else ''}were expected",
            remedy,
        )


def prove_measures(kept: pa.Table, measures: dict[str, float], path: str, remedy: str) -> None:
    """Prove the sums of a receipt (seconds, windows, frames, tokens) from the columns."""
    sums: dict[str, float] = {
        name: float(kept[name].to_numpy().sum())
        for name in ("seconds", "windows", "frames")
        if name in kept.column_names
    }
    if "input_ids" in kept.column_names:
        sums["tokens"] = float(lengths(kept["input_ids"]).sum())
    for name in sorted({*sums, *measures}):
        said, found = measures.get(name, math.nan), sums.get(name, math.nan)
        if not math.isclose(said, found, rel_tol=1e-9, abs_tol=2e-3):  # stored to milliseconds
            raise ContractError(
                f"{path} holds {found:g} {name}", f"its receipt counts {said:g}", remedy
            )


def _require_distinct(ids: pa.ChunkedArray, path: str, remedy: str) -> None:
    if len(ids.unique()) == len(ids):
        return
    first: dict[str, int] = {}
    for row, name in enumerate(ids.to_pylist()):
        if name in first:
            raise ContractError(
                f"{path}:{row} repeats the id {name}", f"row {first[name]} has it", remedy
            )
        first[name] = row


def _require_known(rows: np.ndarray, ids: pa.ChunkedArray, where: str, remedy: str) -> None:
    if (rows < 0).any():
        row = int(np.argmax(rows < 0))
        raise ContractError(
            f"{where} holds {ids[row].as_py()} in row {row}",
            "no record of its input has this id",
            remedy,
        )
