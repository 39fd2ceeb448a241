import threading
from contextlib import contextmanager

import pytest
import torch

from koe.errors import StorageError
from tests.full_disk import full_disk
from tests.training.helpers import assert_same_weights
from tests.training.llamas import loss_of
from tests.training.saving import (
    RANKS,
    STATE,
    loaded,
    names_in,
    newest,
    progress_of,
    save,
    steps_in,
    tensors_of,
    trained,
    writer_in,
)
from training.checkpoint import folder as checkpoints
from training.checkpoint.reader import load_checkpoint
from training.checkpoint.tensor_files import checkpoint_tensors


@contextmanager
def held(writer):
    """Keep the writer's thread from beginning with what is started inside."""
    gate = threading.Event()
    writer._thread.submit(gate.wait)
    try:
        yield
    finally:
        gate.set()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_is_saved_is_loaded(tmp_path, asynchronous):
    model, optimizer = trained(steps=2)
    torch.manual_seed(7)
    path = save(tmp_path, model, optimizer, 5, asynchronous=asynchronous)
    wanted = torch.rand(3)
    assert newest(tmp_path) == checkpoints.Checkpoint(path, path, progress_of(5))
    fresh, other = trained(seed=1)
    assert load_checkpoint(path, fresh, other, RANKS) == (STATE, True)
    assert torch.equal(torch.rand(3), wanted)
    assert fresh.lm_head.weight is fresh.model.embed_tokens.weight
    assert_same_weights(tensors_of(fresh, other), tensors_of(model, optimizer))
    for number in (2, 3):  # both go on alike
        for a, b in ((model, optimizer), (fresh, other)):
            loss_of(a, number).backward()
            b.step()
            b.zero_grad()
    assert_same_weights(tensors_of(fresh, other), tensors_of(model, optimizer))


def test_steps_that_follow_do_not_show_in_what_is_being_written(tmp_path):
    model, optimizer = trained()
    before = tensors_of(model, optimizer)
    state = dict(STATE)
    with writer_in(tmp_path) as writer:
        with held(writer):
            writer.start(progress_of(1), model, optimizer, state)
            assert writer.poll() is None
            for tensor in checkpoint_tensors(model, optimizer).values():
                tensor.detach().add_(1.0)
            state["reason"] = "later"
            torch.rand(5)
            assert names_in(tmp_path) == [".step-00000001.tmp"]
        path = writer.finish()
        assert path is not None
        assert writer.poll() is None  # told once
        assert writer.finish() is None
    assert_same_weights(loaded(path), before)


def test_the_one_before_is_finished_first(tmp_path):
    model, optimizer = trained()
    with writer_in(tmp_path) as writer:
        writer.start(progress_of(1), model, optimizer, STATE)
        writer.start(progress_of(2), model, optimizer, STATE)
        assert newest(tmp_path).progress.steps >= 1
        path = writer.finish()
        assert path is not None
        assert path.name == "step-00000002"
    assert steps_in(tmp_path) == [1, 2]


@pytest.mark.parametrize("at", ["poll", "finish", "start"])
def test_an_error_of_the_background_is_raised_at_the_next_call(tmp_path, at):
    model, optimizer = trained()
    with writer_in(tmp_path) as writer:
        writer.start(progress_of(1), model, optimizer, STATE)
        whole_one = writer.finish()
        with full_disk():
            writer.start(progress_of(2), model, optimizer, STATE)
            assert writer._pending is not None
            writer._pending.exception(timeout=60)
        arguments = (progress_of(3), model, optimizer, STATE) if at == "start" else ()
        with pytest.raises(StorageError, match=r"cannot be written.*rank 0.*start again"):
            getattr(writer, at)(*arguments)
        assert newest(tmp_path).path == whole_one
        writer.start(progress_of(3), model, optimizer, STATE)  # nothing is left of the failure
        writer.finish()
    assert steps_in(tmp_path) == [1, 3]


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    model, optimizer = trained()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        save(tmp_path / "file", model, optimizer, 1)
    with full_disk(), pytest.raises(StorageError, match="cannot be written"):
        save(tmp_path / "run", model, optimizer, 1, asynchronous=False)
