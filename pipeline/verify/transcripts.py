"""The checks of transcripts: those that the receipt names decided alone which clips tokenize rejected."""

from __future__ import annotations

from koe.schema import REJECTED
from pipeline.verify.clips import settings_of
from pipeline.verify.flow import StageTables
from stages.settings import TranscriptsConfig
from stages.text.transcripts import TranscriptChecks


def prove_transcripts(made: StageTables) -> None:
    """Prove that every clip that was kept passes the checks, and every rejected one fails them.

    A rejected clip must have the reason that the checks give it.
    """
    checks = TranscriptChecks(settings_of(made.receipt, "transcripts", TranscriptsConfig))
    outcomes = zip(*(made.excluded[name].to_pylist() for name in ("id", "outcome", "reason")),
                   strict=True)  # fmt: skip
    excluded = {id: (outcome, reason) for id, outcome, reason in outcomes}
    columns = (made.input[name].to_pylist() for name in ("id", "text", "seconds"))
    for id, text, seconds in zip(*columns, strict=True):
        outcome, reason = excluded.get(id, ("kept", ""))
        if outcome not in ("kept", REJECTED):
            continue
        found = checks.rejection(checks.prepared(text), seconds)
        due = found.reason if found else ""
        if due != reason:
            raise made.error(
                f"{made.path} {f'rejected {id} as {reason}' if reason else f'kept {id}'}",
                f"the checks of its receipt say {f'{due}: {found.detail}' if found else 'that it fits'}",
            )
