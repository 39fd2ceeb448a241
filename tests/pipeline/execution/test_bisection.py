"""The search for what ends a worker: exactly the killers are found, in a bounded number of tries."""

from __future__ import annotations

from math import ceil, log2

from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.bisection import find_killers


@st.composite
def killers_and_guess(draw):
    number = draw(st.integers(1, 300))
    places = st.integers(0, number - 1)
    return number, draw(st.sets(places, max_size=8)), draw(st.none() | places)


@given(case=killers_and_guess())
def test_exactly_the_killers_are_found(case):
    number, killers, guess = case
    tries = []

    def fails(part):
        tries.append(part)
        return ",".join(str(item) for item in part if item in killers)

    found = find_killers(number, fails, guess)
    assert found.killers == {killer: str(killer) for killer in killers}
    assert found.rest_lives
    assert len(tries) <= 2 * len(killers) * ceil(log2(max(number, 2))) + 3
    if killers == {guess}:
        assert len(tries) <= 2, "a right guess needs its own try, and one of the rest"


@given(case=killers_and_guess(), pair=st.sets(st.integers(0, 299), min_size=2, max_size=2))
def test_what_kills_only_together_is_not_blamed_on_one(case, pair):
    number, killers, guess = case
    killers = killers - pair

    def fails(part):
        return "died" if killers & set(part) or pair <= set(part) else ""

    found = find_killers(number, fails, guess)
    assert found.killers.keys() == killers
    assert found.rest_lives == (max(pair) >= number)


@given(number=st.integers(1, 2000), most=st.integers(0, 50))
def test_tries_are_bounded_where_all_records_kill(number, most):
    tries = []

    def fails(part):
        tries.append(part)
        return "died"

    found = find_killers(number, fails, max_tries=most)
    assert len(tries) <= most
    assert found.rest_lives <= (len(found.killers) == number)
