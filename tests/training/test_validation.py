import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import EarlyStoppingConfig
from training.validation import ValidationLosses

losses_of_runs = st.lists(
    st.floats(0, 12) | st.sampled_from([float("nan"), float("inf")]), min_size=1, max_size=30
)


def stops_after(losses, evaluations, min_improvement):
    """The plain oracle: how many of the losses are seen before the run stops; None: it does not."""
    improved, since = None, 0
    for number, loss in enumerate(losses, start=1):
        if math.isfinite(loss) and (improved is None or loss < improved - min_improvement):
            improved, since = loss, 0
        else:
            since += 1
        if since >= evaluations:
            return number
    return None


@given(losses_of_runs, st.integers(1, 5), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 30))
def test_a_run_stops_after_so_many_evaluations_without_improvement(
    losses, evaluations, min_improvement, resumed_at
):
    config = EarlyStoppingConfig(evaluations=evaluations, min_improvement=min_improvement)
    record, seen = ValidationLosses(config), None
    for number, loss in enumerate(losses, start=1):
        if number == resumed_at:  # through the JSON of a checkpoint
            saved, record = record.state_dict(), ValidationLosses(config)
            record.load_state_dict(json.loads(json.dumps(saved, allow_nan=False)))
        record.add(10 * number, loss)
        if record.reason_to_stop():
            seen = number
            break
    assert seen == stops_after(losses, evaluations, min_improvement)
    assert not ValidationLosses(None).reason_to_stop()


@given(losses_of_runs)
def test_the_lowest_is_remembered(losses):
    record = ValidationLosses(None)
    for number, loss in enumerate(losses):
        record.add(number, loss)
    finite = {number: loss for number, loss in enumerate(losses) if math.isfinite(loss)}
    lowest = min(finite, key=lambda number: (finite[number], number), default=None)
    assert record.lowest == {"step": lowest, "loss": None if lowest is None else finite[lowest]}
    assert record.at(len(losses) - 1) == finite.get(len(losses) - 1)
    assert record.at(len(losses)) is None


@pytest.mark.parametrize("loss", [2.0, float("nan")])
def test_the_reason_names_what_has_not_come(loss):
    record = ValidationLosses(EarlyStoppingConfig(evaluations=2, min_improvement=0.5))
    for step, value in ((10, 2.25), (20, 2.0), (30, loss)):
        record.add(step, value)
    assert record.reason_to_stop() == (
        "the validation loss has not fallen by 0.5 in 2 evaluations since 2.2500"
    )
