"""The dataset card: it must agree with the statistics; its front matter is the owner's to edit."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from koe.dataflow import CARD
from koe.errors import ContractError
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan
from pipeline.stats import run_stats
from pipeline.stats.dataset_card import dataset_card

_REMEDY = f"Remove {CARD} and run `koe run`: it is written again."


def prove_card(plan: Plan, ledger: Ledger, index: dict[str, Any]) -> bool:
    """Prove that the card agrees with the run; False while there is no card.

    Raises: ContractError naming the first line that differs.
    """
    if ledger.storage.size(CARD) is None:
        return False
    try:
        stored = ledger.storage.read_bytes(CARD).decode()
    except UnicodeDecodeError as error:
        raise ContractError(f"{CARD} is not UTF-8 text", str(error), _REMEDY) from error
    first, found = _body(stored)
    _, expected = _body(dataset_card(index, run_stats(plan, ledger)))
    for number, (said, true) in enumerate(zip_longest(found, expected), first):
        if said != true:
            raise ContractError(
                f"{CARD}:{number} does not agree with the run",
                f"it says {said!r:.200}, the run holds {true!r:.200}",
                _REMEDY,
            )
    return True


def _body(card: str) -> tuple[int, list[str]]:
    """Return the lines below the YAML front matter, and the number of the first."""
    lines = card.splitlines()
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return 1, lines
    end = lines.index("---", 1) + 1
    return end + 1, lines[end:]
