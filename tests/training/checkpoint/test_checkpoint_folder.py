import json
import os
import shutil
from pathlib import Path

import pytest

from koe.errors import ConfigError, ContractError, StorageError
from tests.training.helpers import assert_same_weights
from tests.training.saving import (
    MOMENTS,
    STATE,
    TENSORS,
    loaded,
    never,
    newest,
    progress_of,
    save,
    steps_in,
    tensors_of,
    trained,
    writer_in,
)
from training.checkpoint import folder as checkpoints
from training.checkpoint.local import LocalCheckpoints
from training.checkpoint.manifest import MANIFEST, read_manifest
from training.checkpoint.tensor_files import INDEX


def damage(path, how):
    data = path.read_bytes()
    middle = len(data) // 2
    if how == "truncate":
        path.write_bytes(data[:middle])
    elif how == "lengthen":
        path.write_bytes(data + b"\0")
    elif how == "flip":
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncate", "lengthen", "flip", "remove"])
@pytest.mark.parametrize("name", [TENSORS, MOMENTS, INDEX, "rng-00000.pt", "state.json"])
def test_a_torn_checkpoint_is_passed_over_and_named(tmp_path, name, how):
    whole_one = save(tmp_path, *trained(), 1)
    corrupt = save(tmp_path, *trained(), 2)
    damage(corrupt / name, how)
    told = []
    assert newest(tmp_path, told.append).path == whole_one
    assert len(told) == 1
    assert f"{corrupt.name}/{name}" in told[0]


@pytest.mark.parametrize("how", ["truncate", "remove", "format"])
def test_without_a_manifest_there_is_no_checkpoint(tmp_path, how):
    whole_one = save(tmp_path, *trained(), 1)
    corrupt = save(tmp_path, *trained(), 2)
    manifest = corrupt / MANIFEST
    if how == "format":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 1}))
    else:
        damage(manifest, how)
    told = []
    assert newest(tmp_path, told.append).path == whole_one
    assert corrupt.name in told[0]
    with pytest.raises(ContractError):
        read_manifest(corrupt)


def test_a_killed_save_leaves_the_one_before(tmp_path):
    model, optimizer = trained()
    whole_one = save(tmp_path, model, optimizer, 1)
    shutil.copytree(whole_one, tmp_path / ".step-00000002.tmp")
    shutil.copytree(whole_one, tmp_path / ".step-00000007.tmp")
    shutil.copytree(whole_one, tmp_path / ".step-00000000.deleted")
    assert newest(tmp_path).path == whole_one
    assert checkpoints.latest(LocalCheckpoints(tmp_path / "empty"), never) is None
    save(tmp_path, model, optimizer, 2)
    assert steps_in(tmp_path) == [1, 2]


def test_a_save_that_fails_at_any_sync_or_rename_leaves_a_whole_one(tmp_path, monkeypatch):
    """Count the calls of a save that replaces step 2, then let each of them fail in turn."""
    model, optimizer = trained()
    calls, failing = [], [0]

    def fragile(real):
        def call(*arguments, **options):
            calls.append(real)
            if len(calls) == failing[0]:
                raise OSError(5, "the medium is gone")
            return real(*arguments, **options)

        return call

    save(tmp_path, model, optimizer, 1)
    save(tmp_path, model, optimizer, 2)
    expected = tensors_of(model, optimizer)
    monkeypatch.setattr(os, "fsync", fragile(os.fsync))
    monkeypatch.setattr(Path, "rename", fragile(Path.rename))
    save(tmp_path, model, optimizer, 2)
    num_calls = len(calls)
    assert num_calls >= 9  # 6 files, draft, 2 renames, folder
    for place in range(1, num_calls + 1):
        calls.clear()
        failing[0] = place
        with pytest.raises(StorageError, match=r"cannot be written.*the medium is gone"):
            save(tmp_path, model, optimizer, 2)
        failing[0] = 0
        assert_same_weights(loaded(newest(tmp_path).path), expected)
        save(tmp_path, model, optimizer, 2)
        assert steps_in(tmp_path) == [1, 2]


def test_only_the_newest_are_kept(tmp_path):
    model, optimizer = trained()
    for steps in (1, 2, 3, 4):
        save(tmp_path, model, optimizer, steps, newest=2)
    assert steps_in(tmp_path) == [3, 4]


@pytest.mark.parametrize(
    ("every", "keep", "back", "most"), [(1, 1, 4, 4), (2, 2, 5, 5), (5, 3, 4, 3)]
)
def test_one_to_roll_back_to_is_always_kept(tmp_path, every, keep, back, most):
    model, optimizer = trained()
    seen = []
    for steps in range(0, 14 * every, every):
        save(tmp_path, model, optimizer, steps, newest=keep, back_steps=back)
        seen.append(steps)
        kept = steps_in(tmp_path)
        assert kept[-keep:] == seen[-keep:]
        assert len(kept) <= most
        if steps >= back:
            found = checkpoints.latest(LocalCheckpoints(tmp_path), never, steps - back)
            assert found is not None
            assert steps - found.progress.steps < 2 * back + every


def test_a_torn_checkpoint_does_not_push_out_a_whole_one(tmp_path):
    model, optimizer = trained()
    for steps in (1, 2, 9):
        corrupt = save(tmp_path, model, optimizer, steps)
        if steps > 1:
            (corrupt / TENSORS).write_bytes(b"")
    save(tmp_path, model, optimizer, 3, newest=2)
    assert steps_in(tmp_path) == [1, 3]


def test_after_a_rollback_the_course_given_up_is_replaced(tmp_path):
    for steps in (2, 4, 6):
        save(tmp_path, *trained(seed=0), steps)
    model, optimizer = trained(seed=3)
    path = save(tmp_path, model, optimizer, 4)
    assert steps_in(tmp_path) == [2, 4]
    assert_same_weights(loaded(path), tensors_of(model, optimizer))


def test_latest_at_most_finds_the_newest_whole_one_so_far_back(tmp_path):
    for steps in (2, 4, 6):
        save(tmp_path, *trained(), steps)
    for steps, expected in ((7, 6), (6, 6), (5, 4), (2, 2)):
        found = checkpoints.latest(LocalCheckpoints(tmp_path), never, steps)
        assert found is not None
        assert found.progress == progress_of(expected)
    assert checkpoints.latest(LocalCheckpoints(tmp_path), never, 1) is None
    damage(tmp_path / "step-00000004" / TENSORS, "flip")
    told = []
    found = checkpoints.latest(LocalCheckpoints(tmp_path), told.append, 5)
    assert found is not None
    assert found.progress.steps == 2
    assert "step-00000004" in told[0]


def test_files_that_rank_0_does_not_see_are_not_committed(tmp_path):
    model, optimizer = trained()
    with writer_in(tmp_path) as writer:
        write = writer._exchange

        def lose_a_file(work):
            results = write(work)
            (tmp_path / ".step-00000001.tmp" / "rng-00000.pt").unlink(missing_ok=True)
            return results

        writer._exchange = lose_a_file
        writer.start(progress_of(1), model, optimizer, STATE)
        with pytest.raises(StorageError, match=r"rng-00000.pt is not here.*all nodes mount"):
            writer.finish()
    assert checkpoints.latest(LocalCheckpoints(tmp_path), never) is None


def test_other_data_is_refused_unless_asked(tmp_path):
    save(tmp_path, *trained(), 1)
    found = newest(tmp_path)
    checkpoints.require_same_shards(found, "f" * 64, False)
    with pytest.raises(ConfigError, match=r"other shards.*resume_on_other_shards"):
        checkpoints.require_same_shards(found, "e" * 64, False)
    checkpoints.require_same_shards(found, "e" * 64, True)
