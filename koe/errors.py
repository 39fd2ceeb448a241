"""Typed errors. Every message says what happened, why, and what to do about it."""

from __future__ import annotations

from typing import Any


class KoeError(Exception):
    """Base of all errors that koe raises on purpose.

    `what` is the failure in one clause, `why` its cause, `remedy` the next step for the user.
    """

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        self.what, self.why, self.remedy = what, why, remedy
        parts = [what]
        if why:
            parts.append(f"because {why}")
        text = " ".join(parts)
        super().__init__(f"{text}. {remedy}".rstrip() if remedy else text)

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # keeps the fields when the error crosses a process boundary
        return type(self), (self.what, self.why, self.remedy)


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

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_stage_error, (
            self.what,
            self.why,
            self.remedy,
            self.stage,
            self.unit,
            self.clip_id,
        )


def _rebuild_stage_error(what, why, remedy, stage, unit, clip_id) -> StageError:
    return StageError(what, why, remedy, stage=stage, unit=unit, clip_id=clip_id)


class StorageError(KoeError):
    """The run directory cannot be written or read (disk full, permission, lost mount).

    Never the fault of one unit: the run stops at once and can be resumed.
    """


class BadRecord(Exception):
    """One clip or sample is unusable; the stage turns it into a quarantine row.

    `reason` is a short fixed word that statistics group by (`truncated_audio`), `detail` the
    particulars of this record.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.detail)
