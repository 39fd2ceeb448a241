"""Checkpoints at a URL: complete or absent, loaded only when every hash agrees."""

import json
from contextlib import closing

import pytest

from koe.errors import ContractError, StorageError
from tests.training.helpers import assert_same_weights
from tests.training.remote import memory_url
from tests.training.saving import (
    MOMENTS,
    STATE,
    TENSORS,
    loaded,
    never,
    open_writer,
    progress_of,
    tensors_of,
    trained,
)
from training.checkpoint import folder as checkpoints
from training.checkpoint import rollback
from training.checkpoint.manifest import MANIFEST, Manifest
from training.checkpoint.remote import RemoteCheckpoints
from training.places import RemoteFolder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("KOE_CACHE", str(folder))
    return folder


@pytest.fixture(params=["memory", "s3"])
def url(request):
    if request.param == "memory":
        return memory_url()
    bucket = f"b{abs(hash(request.node.name)) % 10**8}"
    return request.getfixturevalue("s3").make_bucket(bucket) + "/train/checkpoints"


def save(url, model, optimizer, steps, loss=None, **changes):
    store = RemoteCheckpoints(url)
    with closing(store), open_writer(store, **changes) as writer:
        writer.start(progress_of(steps), model, optimizer, STATE, validation_loss=loss)
        return writer.finish()


def in_use(cache):
    return [path.name for path in cache.glob("work/*")]


def test_what_is_saved_is_loaded_and_nothing_stays_on_the_disk(url, cache):
    model, optimizer = trained(steps=2)
    assert save(url, model, optimizer, 5) == f"{url}/step-00000005"
    store = RemoteCheckpoints(url)
    found = checkpoints.latest(store, never)
    assert found is not None
    assert (found.place, found.progress) == (f"{url}/step-00000005", progress_of(5))
    assert_same_weights(loaded(found.path), tensors_of(model, optimizer))
    assert in_use(cache)
    store.release()
    assert not in_use(cache)


@pytest.mark.parametrize("name", [TENSORS, MOMENTS, "rng-00000.pt", "state.json", MANIFEST])
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over_and_named(name, how):
    url = memory_url()
    model, optimizer = trained()
    for steps in (1, 2):
        save(url, model, optimizer, steps)
    remote, path = RemoteFolder(url), f"step-00000002/{name}"
    data = bytearray(remote.read(path))
    data[len(data) // 2] ^= 1
    if how == "remove":
        remote.remove(path)
    else:
        remote.write(path, bytes(data) if how == "flip" else bytes(data[:-9]))
    told = []
    store = RemoteCheckpoints(url)
    found = checkpoints.latest(store, told.append)
    store.close()
    assert found is not None
    if name == MANIFEST and how == "flip" and not told:  # a digit of a hash is not in it
        return
    assert found.progress.steps == 1
    assert all("step-00000002" in line for line in told)
    assert bool(told) == (name != MANIFEST or how != "remove"), "without a manifest there is none"


def test_a_kill_at_any_request_leaves_a_complete_checkpoint_or_none(monkeypatch):
    """Fail each write in turn: the newest checkpoint is always whole, and the next save tidies up."""
    model, optimizer = trained()

    class Killed(Exception):
        pass

    writes = {name: getattr(RemoteFolder, name) for name in ("upload", "write", "remove")}
    for last in range(40):
        url, left = memory_url(), [last]
        save(url, model, optimizer, 1)

        def dying(name, left=left):
            def call(self, *args):
                if not left[0]:
                    raise StorageError("killed")
                left[0] -= 1
                return writes[name](self, *args)

            return call

        with monkeypatch.context() as patch:
            for name in writes:
                patch.setattr(RemoteFolder, name, dying(name))
            try:
                save(url, model, optimizer, 2, newest=1)
                survived = True
            except StorageError:
                survived = False
        store = RemoteCheckpoints(url)
        found = checkpoints.latest(store, never)
        assert found is not None
        assert_same_weights(loaded(found.path), tensors_of(model, optimizer))
        store.close()
        save(url, model, optimizer, 3, newest=1)
        assert RemoteCheckpoints(url).steps() == [3]
        files = RemoteFolder(url).sizes()
        assert {name.partition("/")[0] for name in files} == {"step-00000003"}
        if survived:
            assert last > 5
            return
    raise AssertionError("a save makes more writes than that")


def test_old_ones_are_deleted_and_one_to_roll_back_to_stays():
    url = memory_url()
    model, optimizer = trained()
    for steps in range(14):
        save(url, model, optimizer, steps, newest=1, back_steps=4)
        kept = RemoteCheckpoints(url).steps()
        assert kept[-1] == steps
        assert len(kept) <= 4
        assert min(kept) <= max(0, steps - 4)


def test_the_same_step_is_replaced_and_a_rollback_is_recorded():
    url = memory_url()
    for steps in (2, 4, 6):
        save(url, *trained(seed=0), steps)
    model, optimizer = trained(seed=3)
    save(url, model, optimizer, 4)
    store = RemoteCheckpoints(url)
    assert store.steps() == [2, 4]
    found = checkpoints.latest(store, never)
    assert found is not None
    assert_same_weights(loaded(found.path), tensors_of(model, optimizer))
    rollback.record(store, rollback.Rollback(2, 9, {"window": []}))
    assert store.steps() == [2]
    resumed = rollback.resume_point(store, never)
    assert resumed is not None
    assert (resumed[0].progress.steps, resumed[0].progress.data_steps) == (2, 9)
    store.write(rollback.RECORD, b"{")
    with pytest.raises(ContractError, match=r"rollback.json cannot be read"):
        rollback.resume_point(store, never)
    store.close()


def test_files_that_others_have_changed_are_not_committed():
    url = memory_url()
    store = RemoteCheckpoints(url)
    model, optimizer = trained()
    with open_writer(
        store, newest=1, asynchronous=False,
        before_commit=lambda: RemoteFolder(url).write("step-00000001/rng-00000.pt", b"x"),
    ) as writer, pytest.raises(StorageError, match=r"rng-00000.pt is not there as its rank"):  # fmt: skip
        writer.start(progress_of(1), model, optimizer, STATE)
    assert store.steps() == []
    store.close()


def test_a_manifest_names_files_of_its_folder_only():
    url = memory_url()
    save(url, *trained(), 1)
    text = json.loads(RemoteFolder(url).read(f"step-00000001/{MANIFEST}"))
    text["files"]["../evil"] = text["files"].pop(TENSORS)
    RemoteFolder(url).write(f"step-00000001/{MANIFEST}", json.dumps(text).encode())
    with pytest.raises(ContractError, match="is not in the checkpoint's folder"):
        RemoteCheckpoints(url).fetch(1)
    assert Manifest(progress_of(1), {}).as_json()
