"""From one stage to the next: no record appears or vanishes, and carried columns do not change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from koe.errors import ContractError
from koe.schema import CLIP, SCORED
from koe.vocabulary import CODEBOOK_SIZE, SLOTS
from pipeline.run_dir.ledger import Receipt
from pipeline.verify.lists import differ, first, flat, lengths, offsets, places_in
from pipeline.verify.receipts import agree, contradiction, setting

_SCORES = [name for name in SCORED.names if name not in (*CLIP.names, "codes")]


@dataclass(frozen=True)
class StageTables:
    """What a stage made of a unit. `before` is its input; None where that is a source file."""

    receipt: Receipt
    before: pa.Table | None
    kept: pa.Table
    excluded: pa.Table

    @property
    def input(self) -> pa.Table:
        """`before` of a stage that is not the first."""
        assert self.before is not None
        return self.before

    @property
    def path(self) -> str:
        return self.receipt.output.path

    @property
    def excluded_name(self) -> str:
        return f"the excluded table of {self.path}"

    def row_name(self, row: int) -> str:
        """Name a row of `kept` by its place and id."""
        return f"{self.path}:{row} ({self.kept['id'][row].as_py()})"

    def error(self, what: str, why: str) -> ContractError:
        return contradiction(self.receipt.stage, what, why)


def prove_ids(made: StageTables) -> np.ndarray:
    """Prove that a unit's records are those of its input, each once; int64 [kept].

    Returns the rows of `before` that were kept. Without `before` only the ids of `kept` are proved
    to differ. Raises: ContractError naming row and id.
    """
    path = made.path
    ids = made.kept["id"].combine_chunks()
    first_rows = ids.dictionary_encode().indices.to_numpy()  # up to the first id that is repeated
    if (row := first(first_rows != np.arange(len(ids)))) is not None:
        raise made.error(f"{path}:{row} repeats the id {ids[row]}", f"row {first_rows[row]} has it")
    if made.before is None:
        return np.empty(0, np.int64)
    known = made.before["id"].combine_chunks()
    rows = _input_rows(made, made.kept["id"], known, path)
    left_out = _input_rows(made, made.excluded["id"], known, made.excluded_name)
    times = np.bincount(np.concatenate([rows, left_out]), minlength=len(known))
    if (row := first(times != 1)) is not None:
        raise made.error(
            f"{path} does not account for {known[row]} exactly once",
            f"row {row} of its input occurs {times[row]} times in the output and its excluded table",
        )
    if (row := first(np.diff(rows) < 0)) is not None:
        raise made.error(
            f"{path}:{row + 1} is out of order", "a stage keeps the order of its input"
        )
    return rows


def _input_rows(made: StageTables, ids: pa.ChunkedArray, known: pa.Array, where: str) -> np.ndarray:
    """Find the row of the input that each of `ids` is in, int64 [ids]."""
    rows = places_in(ids, known)
    if (row := first(rows < 0)) is not None:
        raise made.error(f"{where} holds {ids[row]} in row {row}", "its input has no such record")
    return rows


def prove_carried(
    made: StageTables, rows: np.ndarray, columns: Sequence[str], made_anew: np.ndarray | None = None
) -> None:
    """Prove that a stage left columns as they were.

    `rows`: those of `before` that `kept` was made of, int64 [kept]; `made_anew` excepts rows of
    `kept`, bool [kept].
    """
    places = np.arange(len(rows)) if made_anew is None else np.flatnonzero(~made_anew)
    was_all = made.input.select(columns).take(pa.array(rows[places]))
    now_all = made.kept.select(columns).take(pa.array(places))
    for name in columns:
        was, now = was_all[name], now_all[name]
        if was.equals(now):
            continue
        for row, old, new in zip(places.tolist(), was.to_pylist(), now.to_pylist(), strict=True):
            both_nan = old != old and new != new
            if old != new and not both_nan:
                raise made.error(
                    f"{made.row_name(row)} has another {name} than its input",
                    f"{new!r:.80} was {old!r:.80}",
                )


def prove_scores_kept(made: StageTables, rows: np.ndarray) -> None:
    """Prove that encode changed no score but the inexact ones that it computed again in FP32.

    Codes that the score stage had made already must be kept too.
    """
    was = made.input["ovrl_error"].to_numpy()[rows]
    rescores = "exact_scores" in made.receipt.content
    again = (was > 0) & (made.kept["ovrl_error"].to_numpy() == 0) & rescores
    prove_carried(made, rows, _SCORES, again)
    absent = made.input["codes"].take(pa.array(rows)).is_null().to_numpy()
    prove_carried(made, rows, ["codes"], absent)


def prove_threshold(made: StageTables) -> None:
    """Prove that the threshold of the receipt alone decided which clips were kept."""
    threshold = setting(made.receipt, "threshold_ovrl")
    why = f"its receipt names the threshold {threshold}"
    ovrl = made.kept["ovrl"].to_numpy()
    if (row := first(~(ovrl > threshold))) is not None:
        raise made.error(f"{made.row_name(row)} was kept with ovrl {ovrl[row]:.4f}", why)
    rejected = made.excluded.filter(pc.field("reason") == "below_threshold")["id"]
    rows = places_in(rejected, made.input["id"].combine_chunks())
    least = made.input["ovrl"].to_numpy()[rows] - made.input["ovrl_error"].to_numpy()[rows]
    if (row := first(least > threshold)) is not None:
        what = f"{rejected[row]} was rejected by {made.path} with ovrl {least[row]:.4f} or more"
        raise made.error(what, why)


def prove_encoded(made: StageTables) -> None:
    """Prove that each clip has 7 codes per frame, all in range."""
    frames, sizes = made.kept["frames"].to_numpy(), lengths(made.kept["codes"])
    wrong = (sizes != SLOTS * frames.astype(np.int64)) | (frames < 1)
    too_large = np.flatnonzero(flat(made.kept["codes"]).to_numpy() >= CODEBOOK_SIZE)
    wrong[np.searchsorted(offsets(sizes), too_large, side="right") - 1] = True
    if (row := first(wrong)) is not None:
        raise made.error(
            f"{made.row_name(row)} holds {sizes[row]} codes for its {frames[row]} frames",
            f"a frame has {SLOTS} codes of 0..{CODEBOOK_SIZE - 1}",
        )


def prove_codes(made: StageTables, rows: np.ndarray, frames: np.ndarray, codes: np.ndarray) -> None:
    """Prove that samples hold the codes that encode stored.

    `rows`: those of `before` that the samples were made of, int64 [n]; `frames`: of the samples,
    int64 [n]; `codes`: int [sum of frames, 7]. With `drop_repeated_frames` a frame whose first code
    is that of the frame before it must be gone, and no other frame.
    """
    encoded = made.input.select(["id", "codes"]).take(pa.array(rows))
    grid = flat(encoded["codes"]).to_numpy().reshape(-1, SLOTS)
    sizes = lengths(encoded["codes"]) // SLOTS
    drops_repeats = bool(made.receipt.content.get("drop_repeated_frames", False))
    if drops_repeats:
        keep = np.ones(len(grid), bool)
        keep[1:] = grid[1:, 0] != grid[:-1, 0]
        keep[offsets(sizes)[:-1]] = True  # the first frame of a clip
        sizes = np.add.reduceat(keep, offsets(sizes)[:-1], dtype=np.int64) if len(sizes) else sizes
        grid = grid[keep]
    wrong = frames != sizes
    if not wrong.any() and not np.array_equal(grid, codes):
        wrong[np.repeat(np.arange(len(sizes)), sizes)[(grid != codes).any(axis=1)]] = True
    if (row := first(wrong)) is not None:
        raise made.error(
            f"{made.path}:{row} holds other codes than encode stored",
            f"{frames[row]} frames of clip {encoded['id'][row]}, whose {sizes[row]} frames "
            f"{'without repeats ' if drops_repeats else ''}were expected",
        )


def prove_measures(made: StageTables) -> None:
    """Prove the sums of a receipt (seconds, windows, frames, tokens) from the columns."""
    kept, measures = made.kept, made.receipt.measures
    sums: dict[str, float] = {
        name: float(kept[name].to_numpy().sum())
        for name in ("seconds", "windows", "frames")
        if name in kept.column_names
    }
    if "input_ids" in kept.column_names:
        sums["tokens"] = float(lengths(kept["input_ids"]).sum())
    for name in sorted({*sums, *measures}):
        said, found = measures.get(name, math.nan), sums.get(name, math.nan)
        if not agree(said, found):
            raise made.error(f"{made.path} holds {found:g} {name}", f"its receipt counts {said:g}")


def prove_column(
    made: StageTables, column: str, value: str | int, *, excluded: bool = False
) -> None:
    """Prove that all rows that a unit kept, or excluded, have one value in a column."""
    found = (made.excluded if excluded else made.kept)[column]
    if (row := first(differ(found, pa.scalar(value, found.type)))) is not None:
        raise made.error(
            f"{made.excluded_name if excluded else made.path} has {found[row].as_py()!r} for "
            f"{column} in row {row}",
            f"all rows of its unit have {value!r}",
        )
