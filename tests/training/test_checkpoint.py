import json
import shutil

import pytest
import torch

from pipeline.errors import ConfigError, StorageError
from tests.training.helpers import assert_same_weights, small_config, small_model
from training import checkpoint as checkpoints
from training.config import TinyModelConfig
from training.distributed import single
from training.optim import build_optimizer

RANKS = single("cpu")


def trained(seed=0):
    model = small_model(seed=seed).llama
    optimizer = build_optimizer(model, small_config())
    model(
        input_ids=torch.arange(20).view(1, -1), labels=torch.arange(20).view(1, -1)
    ).loss.backward()
    optimizer.step()
    return model, optimizer


def save(folder, model, optimizer, steps, keep=3):
    progress = checkpoints.Progress(steps, steps * 10, "f" * 64, 4)
    return checkpoints.save(folder, progress, model, optimizer, RANKS, keep=keep)


def never(message):
    raise AssertionError(message)


def test_what_is_saved_is_loaded(tmp_path):
    model, optimizer = trained()
    torch.manual_seed(7)
    path = save(tmp_path, model, optimizer, 5)
    wanted = torch.rand(3)
    found = checkpoints.latest(tmp_path, never)
    assert found == checkpoints.Checkpoint(path, checkpoints.Progress(5, 50, "f" * 64, 4))
    fresh = small_model(seed=1).llama
    other = build_optimizer(fresh, small_config())
    assert checkpoints.load(found.path, fresh, other, RANKS)
    assert torch.equal(torch.rand(3), wanted)
    assert_same_weights(fresh.state_dict(), model.state_dict())
    for ours, theirs in zip(
        other.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        assert_same_weights(ours, theirs)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        ("truncate", "model.pt"),
        ("flip", "optimizer.pt"),
        ("remove", "rng-00000.pt"),
        ("no manifest", ""),
        ("torn manifest", ""),
    ],
)
def test_a_torn_checkpoint_is_passed_over_and_named(tmp_path, damage, name):
    model, optimizer = trained()
    whole = save(tmp_path, model, optimizer, 1)
    torn = save(tmp_path, model, optimizer, 2)
    data = (torn / name).read_bytes() if name else b""
    manifest = (torn / checkpoints.MANIFEST).read_bytes()
    if damage == "truncate":
        (torn / name).write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        middle = len(data) // 2
        (torn / name).write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif damage == "remove":
        (torn / name).unlink()
    elif damage == "no manifest":
        (torn / checkpoints.MANIFEST).unlink()
    else:
        (torn / checkpoints.MANIFEST).write_bytes(manifest[:-20])
    told = []
    found = checkpoints.latest(tmp_path, told.append)
    assert found is not None
    assert found.path == whole
    assert len(told) == 1
    assert torn.name in told[0]


def test_a_killed_save_leaves_the_one_before(tmp_path):
    model, optimizer = trained()
    whole = save(tmp_path, model, optimizer, 1)
    draft = tmp_path / ".step-00000002.tmp"
    shutil.copytree(whole, draft)
    found = checkpoints.latest(tmp_path, never)
    assert found is not None
    assert found.path == whole
    assert checkpoints.latest(tmp_path / "empty", never) is None
    assert save(tmp_path, model, optimizer, 2).name == "step-00000002"
    assert not draft.exists()


def test_only_the_newest_are_kept(tmp_path):
    model, optimizer = trained()
    for steps in (1, 2, 3, 4):
        save(tmp_path, model, optimizer, steps, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_torn_later_checkpoint_does_not_push_out_a_whole_one(tmp_path):
    model, optimizer = trained()
    save(tmp_path, model, optimizer, 1)
    torn = save(tmp_path, model, optimizer, 9)
    (torn / "model.pt").write_bytes(b"")
    save(tmp_path, model, optimizer, 2, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]


def test_another_model_is_refused(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, model, optimizer, 1)
    wider = small_model(tiny=TinyModelConfig(vocab_size=512)).llama
    with pytest.raises(ConfigError, match="does not fit the model"):
        checkpoints.load(path, wider, build_optimizer(wider, small_config()), RANKS)


def test_other_data_is_refused_unless_asked(tmp_path):
    model, optimizer = trained()
    found = checkpoints.read(save(tmp_path, model, optimizer, 1))
    checkpoints.require_same_data(found, "f" * 64, 4, False)
    with pytest.raises(ConfigError, match=r"other shards.*resume_on_other_shards"):
        checkpoints.require_same_data(found, "e" * 64, 4, False)
    checkpoints.require_same_data(found, "e" * 64, 4, True)
    with pytest.raises(ConfigError, match="4 rows a step"):
        checkpoints.require_same_data(found, "f" * 64, 8, True)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    model, optimizer = trained()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        save(tmp_path / "file", model, optimizer, 1)


def test_pickled_code_is_never_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    model, optimizer = trained()
    path = save(tmp_path, model, optimizer, 1)
    torch.save({"weight": Harmful()}, path / "model.pt")
    manifest = json.loads((path / checkpoints.MANIFEST).read_text())
    manifest["sha256"]["model.pt"] = checkpoints._sha256(path / "model.pt")
    (path / checkpoints.MANIFEST).write_text(json.dumps(manifest))
    found = checkpoints.latest(tmp_path, never)
    assert found is not None
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoints.load(found.path, model, optimizer, RANKS)
