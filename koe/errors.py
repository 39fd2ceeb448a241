"""Typed errors. Every message says what happened, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from koe.secrets import scrub

P = ParamSpec("P")
T = TypeVar("T")


class KoeError(Exception):
    """Base of all errors that koe raises on purpose.

    `what` is the failure in one clause, `why` its cause, `remedy` the next step for the user.
    """

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        what, why, remedy = map(scrub, (what, why, remedy))  # others' messages quote URLs
        self.what, self.why, self.remedy = what, why, remedy
        text = f"{what} because {why}" if why else what
        super().__init__(f"{text}. {remedy}" if remedy else text)


class ConfigError(KoeError):
    """The configuration, or a file it names, cannot be used; raised before any work."""


class ContractError(KoeError):
    """Data broke a promise that another part of koe relies on (schema, range, hash, count)."""


class StageError(KoeError):
    """A stage failed on a unit for a reason that is not bad input data.

    The unit stays undone and the run can be resumed.
    """

    def __init__(
        self,
        what: str,
        why: str = "",
        remedy: str = "",
        *,
        stage: str = "",
        unit: str = "",
        clip_id: str = "",
    ) -> None:
        super().__init__(what, why, remedy)
        self.stage, self.unit, self.clip_id = stage, unit, clip_id


class StorageError(KoeError):
    """The run directory cannot be written or read (disk full, permission, lost mount).

    Never the fault of one unit: the run stops at once and can be resumed.
    """


class Stopped(KoeError):
    """Training was asked to end before its last step, and has written a checkpoint to go on from.

    `exit_code` is what the process ends with.
    """

    def __init__(self, what: str, why: str = "", remedy: str = "", *, exit_code: int = 1) -> None:
        super().__init__(what, why, remedy)
        self.exit_code = exit_code


class BadRecord(Exception):
    """One clip or sample is unusable; the stage turns it into a quarantine row.

    `reason` is a short fixed word that statistics group by (`truncated_audio`), `detail` the
    particulars of this record.
    """

    def __init__(self, reason: str, detail: str) -> None:
        detail = scrub(detail)
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | BadRecord:
    """Return the function's result, or the BadRecord that it raises."""
    try:
        return function(*args, **kwargs)
    except BadRecord as bad:
        return bad
