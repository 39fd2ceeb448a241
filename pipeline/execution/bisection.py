"""Finds which of many things fail, alone or with others, by trying parts of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Says how a part fails; empty for one that does not.
Fails = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Found:
    """`killers`: the numbers that fail alone, each with how. `rest_lives`: without them all is well."""

    killers: dict[int, str]
    rest_lives: bool


class _NoMoreTries(Exception):
    pass


@dataclass
class _Search:
    fails: Fails
    max_tries: int
    tries: int = 0
    killers: dict[int, str] = field(default_factory=dict)

    def dies(self, part: Sequence[int]) -> bool:
        if self.tries == self.max_tries:
            raise _NoMoreTries
        self.tries += 1
        how = self.fails(part)
        if how and len(part) == 1:
            self.killers[part[0]] = how
        return bool(how)

    def split(self, part: Sequence[int]) -> None:
        """Find the killers of a part that fails."""
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]) if middle else ():
            if self.dies(half):
                self.split(half)


def find_killers(
    number: int, fails: Fails, guess: int | None = None, max_tries: int = 200
) -> Found:
    """Find which of the numbers below `number` fail alone, where `guess` is tried first.

    With a right guess that is the only one, two tries tell. Otherwise k killers take at most
    2 k log2(number) + 3 of them. What only fails together is not found: `rest_lives` is then False, as
    it is when the tries are used up.
    """
    search = _Search(fails, max_tries)
    try:
        if guess is not None:
            search.dies([guess])
        while True:
            known = len(search.killers)
            rest = [item for item in range(number) if item not in search.killers]
            if not rest or not search.dies(rest):
                return Found(search.killers, True)
            search.split(rest)
            if len(search.killers) == known:
                return Found(search.killers, False)
    except _NoMoreTries:
        return Found(search.killers, False)
