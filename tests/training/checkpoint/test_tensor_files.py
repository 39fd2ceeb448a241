import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from koe.errors import ConfigError, ContractError
from tests.training.helpers import assert_same_weights
from tests.training.llamas import adamw, loss_of, tiny_llama, whole
from tests.training.saving import (
    MOMENTS,
    RANKS,
    TENSORS,
    loaded,
    names_in,
    newest,
    save,
    tensors_of,
    trained,
)
from training.checkpoint.manifest import MANIFEST, mark
from training.checkpoint.reader import load_checkpoint, load_weights
from training.checkpoint.tensor_files import INDEX, model_tensors


def test_a_checkpoint_has_no_pickled_index_and_stores_a_tied_head_once(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, model, optimizer, 5)
    assert names_in(path) == [
        TENSORS,
        MOMENTS,
        "manifest.json",
        "rng-00000.pt",
        "state.json",
        INDEX,
    ]
    tensors = json.loads((path / INDEX).read_text())["tensors"]
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in names
    assert sorted(tensors) == sorted(
        [f"model.{name}" for name in names]
        + [f"optimizer.{n}.{m}" for n in names for m in ("exp_avg", "exp_avg_sq", "step")]
    )
    assert not dist.is_initialized()


def test_moments_that_are_not_there_yet_are_saved_and_change_nothing(tmp_path):
    plain, saved = tiny_llama(), tiny_llama()
    optimizers = adamw(plain), adamw(saved)
    path = save(tmp_path, saved, optimizers[1], 0)
    assert loaded(path)["optimizer.model.norm.weight.step"] == 0
    for model, optimizer in zip((plain, saved), optimizers, strict=True):
        loss_of(model, 0).backward()
        optimizer.step()
    assert_same_weights(tensors_of(saved, optimizers[1]), tensors_of(plain, optimizers[0]))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"vocab_size": 256}, "embed_tokens.weight is"),
        ({"num_hidden_layers": 3}, "it lacks model.model.layers.2"),
        ({"num_hidden_layers": 1}, "the model lacks model.model.layers.1"),
        ({"tie_word_embeddings": False}, "it lacks model.lm_head.weight"),
        ({"dtype": torch.bfloat16}, "torch.bfloat16 in the model"),
    ],
)
def test_another_model_is_refused_and_left_as_it_was(tmp_path, changes, difference):
    path = save(tmp_path, *trained(), 1)
    other = tiny_llama(seed=1, **changes).to(changes.get("dtype", torch.float32))
    optimizer = adamw(other)
    before = tensors_of(other, optimizer)
    with pytest.raises(ConfigError, match=rf"does not fit the model.*{difference}"):
        load_checkpoint(path, other, optimizer, RANKS)
    assert_same_weights(tensors_of(other, optimizer), before)


def test_weights_alone_are_loaded_in_the_models_dtype(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, model, optimizer, 1)
    half = tiny_llama(seed=1).bfloat16()
    load_weights(path, half)
    expected = {name: whole(p).bfloat16() for name, p in model_tensors(model).items()}
    assert_same_weights(model_tensors(half), expected)
    with pytest.raises(ConfigError, match="does not fit"):
        load_weights(path, tiny_llama(num_hidden_layers=1))


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def hash_again(path: Path) -> None:
    """Make the manifest vouch for the files as they now are."""
    manifest = json.loads((path / MANIFEST).read_text())
    for name in manifest["files"]:
        found = mark(path / name)
        manifest["files"][name] = {"sha256": found.sha256, "bytes": found.num_bytes}
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("where", ["weights", "random state"])
def test_pickled_code_is_never_run(tmp_path, where):
    path, trace = save(tmp_path, *trained(), 1), tmp_path / "trace"
    if where == "weights":
        torch.save(Harmful(trace), path / TENSORS)
        index = json.loads((path / INDEX).read_text())
        for tensor in index["tensors"].values():
            tensor["parts"][0] |= {"offset": 0, "length": (path / TENSORS).stat().st_size}
        (path / INDEX).write_text(json.dumps(index))
    else:
        torch.save(Harmful(trace), path / "rng-00000.pt")
    hash_again(path)
    assert newest(tmp_path).path == path
    with pytest.raises(ContractError, match="holds more than tensors"):
        loaded(path)
    assert not trace.exists()
    torch.load(path / (TENSORS if where == "weights" else "rng-00000.pt"), weights_only=False)
    assert trace.exists()  # the file would have done harm


def test_dcps_own_pickled_index_is_neither_written_nor_read(tmp_path):
    model, optimizer = trained()
    path, trace = save(tmp_path, model, optimizer, 1), tmp_path / "trace"
    assert not (path / ".metadata").exists()
    harmful = pickle.dumps(Harmful(trace))
    (path / ".metadata").write_bytes(harmful)
    assert_same_weights(loaded(path), tensors_of(model, optimizer))
    assert not trace.exists()
    pickle.loads(harmful)
    assert trace.exists()


@pytest.mark.parametrize(
    "change",
    [{"file": "../elsewhere"}, {"file": 3}, {"offset": None}, {"sizes": "all"}, {"offsets": [[0]]}],
)
def test_an_index_of_something_else_is_refused(tmp_path, change):
    path = save(tmp_path, *trained(), 1)
    index = json.loads((path / INDEX).read_text())
    next(iter(index["tensors"].values()))["parts"][0] |= change
    (path / INDEX).write_text(json.dumps(index))
    hash_again(path)
    with pytest.raises(ContractError, match="is not an index of tensors"):
        loaded(path)
