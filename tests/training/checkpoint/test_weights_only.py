"""Checkpoints that were reduced to their weights: exported, never gone on from, whole after a crash."""

import json
import os
import shutil
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch

from koe.errors import ConfigError, ContractError, StorageError
from tests.training.helpers import assert_same_weights
from tests.training.llamas import tiny_llama, whole
from tests.training.remote import memory_url
from tests.training.saving import (
    MOMENTS,
    RANKS,
    STATE,
    TENSORS,
    loaded,
    never,
    open_writer,
    progress_of,
    trained,
)
from training.checkpoint import folder as checkpoints
from training.checkpoint import rollback
from training.checkpoint.manifest import MANIFEST
from training.checkpoint.reader import load_checkpoint, load_weights
from training.checkpoint.tensor_files import checkpoint_tensors, model_tensors
from training.model.average import WeightAverage
from training.places import RemoteFolder

KEEPING = {"newest": 1, "best": True, "weights_only": True}
LOSSES = {1: 2.0, 2: 1.0, 3: 1.5, 4: 1.25}  # step 2 is the best


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KOE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def course():
    """The weights after each step: checkpoint 2 must be that of step 2 forever."""
    return {steps: trained(steps=steps) for steps in LOSSES}


def save(place, course, steps, **changes):
    store = checkpoints.open_store(place)
    with closing(store), open_writer(store, **{**KEEPING, **changes}) as writer:
        writer.start(progress_of(steps), *course[steps], STATE, validation_loss=LOSSES[steps])
        writer.finish()


def weights_of(path):
    model = tiny_llama(seed=1)
    load_weights(path, model)
    return {name: whole(tensor) for name, tensor in model_tensors(model).items()}


def assert_best_is_whole(place, course):
    store = checkpoints.open_store(place)
    with closing(store):
        found = checkpoints.best(store, never)
        assert found is not None
        assert found.progress.steps == 2
        assert_same_weights(weights_of(found.path), model_tensors(course[2][0]))


def assert_newest_is_whole(place, course, among):
    store = checkpoints.open_store(place)
    with closing(store):
        found = checkpoints.latest(store, lambda message: None)
        assert found is not None
        assert found.progress.steps in among
        model, optimizer = course[found.progress.steps]
        assert_same_weights(loaded(found.path), checkpoint_tensors(model, optimizer))


def files_of(place):
    """List the files of all checkpoints by their names, hidden ones too."""
    if "://" in str(place):
        return sorted(RemoteFolder(str(place)).sizes())
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request, tmp_path):
    if request.param == "folder":
        return tmp_path / "checkpoints"
    if request.param == "memory":
        return memory_url()
    return request.getfixturevalue("s3").make_bucket("weights-only") + "/train/checkpoints"


def test_the_best_is_reduced_once_nothing_else_keeps_it(place, course):
    for steps in (1, 2):
        save(place, course, steps)
    assert_newest_is_whole(place, course, {2})
    for steps in (3, 4):
        save(place, course, steps)
    best = {"step-00000002/" + name for name in (TENSORS, MANIFEST, "state.json", "tensors.json")}
    newest = {name.replace("00002", "00004") for name in best}
    newest |= {"step-00000004/" + name for name in (MOMENTS, "rng-00000.pt")}
    assert set(files_of(place)) == best | newest
    assert_best_is_whole(place, course)
    assert_newest_is_whole(place, course, {4})


def test_without_weights_only_the_best_stays_whole(tmp_path, course):
    for steps in LOSSES:
        save(tmp_path, course, steps, weights_only=False)
    store = checkpoints.open_store(tmp_path)
    assert store.steps() == [2, 4]
    assert_same_weights(loaded(store.fetch(2)), checkpoint_tensors(*course[2]))


def test_no_run_goes_on_from_weights_only(tmp_path, course):
    for steps in LOSSES:
        save(tmp_path, course, steps)
    store = checkpoints.open_store(tmp_path)
    with pytest.raises(ContractError, match=r"step-00000002 holds weights only.*koe export"):
        load_checkpoint(store.fetch(2), *trained(seed=1), RANKS)
    told = []
    assert checkpoints.latest(store, told.append, 3) is None
    assert "passing over" in told[0]
    exported = checkpoints.latest(store, never, 3, weights_only=True)
    assert exported is not None
    assert exported.progress.steps == 2
    shutil.rmtree(tmp_path / "step-00000004")
    with pytest.raises(ConfigError, match=r"step-00000002 holds weights only, and no other"):
        rollback.resume_point(store, told.append)


def test_a_manifest_names_what_a_checkpoint_is_kept_for(tmp_path, course):
    save(tmp_path, course, 2, every_steps=2)
    manifest = json.loads((tmp_path / "step-00000002" / MANIFEST).read_text())
    assert manifest["validation_loss"] == 1.0
    assert (manifest["permanent"], manifest["weights_only"]) == (True, False)
    for name in ("validation_loss", "permanent", "weights_only"):
        del manifest[name]  # as an earlier version wrote it
    (tmp_path / "step-00000002" / MANIFEST).write_text(json.dumps(manifest))
    store = checkpoints.open_store(tmp_path)
    assert store.manifest(2)[2:] == (None, False, False)
    assert_newest_is_whole(tmp_path, course, {2})
    assert checkpoints.best(store, never) is None


def test_an_export_takes_the_newest_the_best_or_the_one_named(tmp_path, course):
    for steps in LOSSES:
        save(tmp_path, course, steps)
    store = checkpoints.open_store(tmp_path)

    def chosen(steps=None, of_best=False):
        return checkpoints.chosen(store, never, steps, of_best).progress.steps

    assert (chosen(), chosen(of_best=True), chosen(2), chosen(4)) == (4, 2, 2, 4)
    with pytest.raises(ConfigError, match=r"of step 3 because it has step-00000002, step-00000004"):
        chosen(3)
    with pytest.raises(ConfigError, match="exclude each other"):
        chosen(2, of_best=True)
    empty = checkpoints.open_store(tmp_path / "empty")
    for of_best, why in ((True, "whose validation loss was measured"), (False, "to go on from")):
        with pytest.raises(ConfigError, match=rf"no complete checkpoint {why} because it is empty"):
            checkpoints.chosen(empty, never, None, of_best)


def test_a_best_one_that_is_damaged_gives_way_to_the_next(tmp_path, course):
    for steps in LOSSES:
        save(tmp_path, course, steps, newest=4)
    path = tmp_path / "step-00000002" / TENSORS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    told = []
    found = checkpoints.best(checkpoints.open_store(tmp_path), told.append)
    assert found is not None
    assert found.progress.steps == 4
    assert "step-00000002" in told[0]


class Broken(OSError):
    pass


def break_at(place, monkeypatch, number, calls):
    """Let the write of that number fail, on a disk or at a URL; `calls` collects them."""

    def fragile(real):
        def call(*arguments, **options):
            calls.append(real)
            if len(calls) == number:
                raise Broken(5, "the medium is gone")
            return real(*arguments, **options)

        return call

    if "://" in str(place):
        for name in ("upload", "write", "remove"):
            monkeypatch.setattr(RemoteFolder, name, fragile(getattr(RemoteFolder, name)))
        return
    for owner, name in (
        (os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "unlink"), (shutil, "rmtree"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, fragile(getattr(owner, name)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_save_that_breaks_off_at_any_write_leaves_best_and_newest_whole(
    tmp_path, course, kind, monkeypatch
):
    """The third save reduces the second, which is the best, and deletes the first."""
    for number in range(1, 60):
        place = tmp_path / f"{number}" if kind == "folder" else memory_url()
        calls: list = []
        for steps in (1, 2):
            save(place, course, steps, newest=2)
        with monkeypatch.context() as patch:
            break_at(place, patch, number, calls)
            with suppress(StorageError):
                save(place, course, 3)
        assert_best_is_whole(place, course)
        assert_newest_is_whole(place, course, {2, 3})
        save(place, course, 4)
        names = {name.partition("/")[0] for name in files_of(place)}
        assert names == {"step-00000002", "step-00000004"}
        assert len(files_of(place)) == 4 + 6, "a later save tidies up"
        if len(calls) < number:
            assert number > 12
            return
    raise AssertionError("a save makes more writes than that")


def test_averages_stay_with_the_weights(tmp_path, course):
    model, optimizer = trained(steps=2)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    average.update(1)
    store = checkpoints.open_store(tmp_path)
    with open_writer(store, **KEEPING) as writer:
        writer.start(progress_of(2), model, optimizer, STATE, average=average, validation_loss=1.0)
        writer.finish()
    for steps in (3, 4):
        save(tmp_path, course, steps)
    other = tiny_llama(seed=1)
    load_weights(store.fetch(2), other, average=True)
    assert_same_weights(dict(other.named_parameters()), average.tensors)
    load_weights(store.fetch(2), other)
    assert_same_weights(dict(other.named_parameters()), dict(model.named_parameters()))
    with pytest.raises(ConfigError, match=r"no average of the weights.*--ema"):
        load_weights(store.fetch(4), other, average=True)
