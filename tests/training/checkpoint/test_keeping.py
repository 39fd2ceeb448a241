"""Which checkpoints stay: on every course of saves and rollbacks, in a store that holds no files."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.saving import progress_of
from training.checkpoint.keeping import Keeping, best_first, tidy
from training.checkpoint.manifest import FileMark, Manifest

FILES = ("__0_0.distcp", "__0_moments_0.distcp", "rng-00000.pt", "state.json", "tensors.json")


@dataclass
class Listed:
    """A store of manifests alone."""

    manifests: dict[int, Manifest] = field(default_factory=dict)

    def steps(self):
        return sorted(self.manifests)

    def complete(self, steps):
        return self.manifests[steps]

    def discard(self, steps):
        del self.manifests[steps]

    def reduce(self, steps, manifest):
        self.manifests[steps] = manifest

    def sweep(self):
        pass

    def save(self, steps, loss, keeping):
        files = {name: FileMark("0" * 64, 1) for name in FILES}
        permanent = keeping.is_permanent(steps)
        self.manifests[steps] = Manifest(progress_of(steps), files, loss, permanent)
        tidy(self, steps, keeping)  # pyright: ignore[reportArgumentType]

    def roll_back(self, to):
        for steps in [steps for steps in self.manifests if steps > to]:
            self.discard(steps)

    def whole(self):
        return [steps for steps in self.steps() if not self.manifests[steps].weights_only]


keepings = st.builds(
    Keeping,
    newest=st.integers(1, 4),
    back_steps=st.integers(0, 60),
    best=st.booleans(),
    every_steps=st.none() | st.sampled_from([10, 20, 30]),
    weights_only=st.booleans(),
)
courses = st.lists(
    st.none() | st.floats(0.5, 9) | st.just("roll back"), min_size=1, max_size=30
)  # losses of the saves, one every 10 steps; None: not evaluated


@given(keepings, courses)
def test_what_must_stay_stays_and_nothing_else(keeping, course):
    store, losses, steps = Listed(), {}, 0
    for turn in course:
        if turn == "roll back":
            back = [s for s in store.whole() if s <= steps - keeping.back_steps]
            if not back:
                continue
            steps = back[-1]
            store.roll_back(steps)
            losses = {s: loss for s, loss in losses.items() if s <= steps}
        else:
            steps += 10
            losses[steps] = turn
            store.save(steps, turn, keeping)
        saved, kept, whole = sorted(losses), store.steps(), store.whole()
        assert whole[-1] == steps, "the newest is there, to resume from"
        newest = saved[-keeping.newest :]
        if "roll back" not in course:  # to where some have been deleted or reduced before
            assert set(newest) <= set(whole)
            if steps - keeping.back_steps >= saved[0]:
                assert any(s <= steps - keeping.back_steps for s in whole), "to roll back to"
        permanent = [s for s in saved if keeping.is_permanent(s)]
        assert set(permanent) <= set(kept)
        measured = {s: loss for s, loss in losses.items() if loss is not None}
        if keeping.best and measured:
            best = min(measured, key=lambda s: (measured[s], s))
            assert best_first(store.manifests)[0] == best, "the best of the course, not of the rest"
        lasting = {*permanent, *(best_first(store.manifests) if keeping.best else [])}
        assert len(set(kept) - lasting) <= keeping.newest + 2
        if not permanent:
            assert len(kept) <= 2 * (keeping.newest + 2)
        if keeping.weights_only:
            assert len(whole) <= keeping.newest + 2
            for s in set(kept) - set(whole):
                assert set(store.manifests[s].files) == {
                    "__0_0.distcp",
                    "state.json",
                    "tensors.json",
                }
        else:
            assert whole == kept


def test_a_checkpoint_that_was_to_stay_does_whatever_the_settings_say_later():
    store = Listed()
    store.save(10, None, Keeping(newest=1, back_steps=0, every_steps=10))
    store.save(20, None, Keeping(newest=1, back_steps=0))
    store.save(30, None, Keeping(newest=1, back_steps=0, weights_only=True))
    assert store.steps() == [10, 30]
    assert store.whole() == [30]


def test_a_file_of_weights_and_moments_is_not_taken_apart():
    """As an earlier version wrote it; without its moments nothing would be won."""
    files = {"__0_0.distcp": FileMark("0" * 64, 1), "rng-00000.pt": FileMark("0" * 64, 1)}
    store, keeping = Listed(), Keeping(newest=1, back_steps=0, best=True, weights_only=True)
    store.manifests[10] = Manifest(progress_of(10), files, 1.0)
    store.save(20, 2.0, keeping)
    store.save(30, 3.0, keeping)
    assert store.whole() == [10, 30]


@pytest.mark.parametrize(("steps", "permanent"), [(0, False), (10, False), (20, True), (40, True)])
def test_permanent_ones_come_every_so_many_steps(steps, permanent):
    assert Keeping(1, 0, every_steps=20).is_permanent(steps) is permanent
