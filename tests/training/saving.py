"""Saves and loads of a tiny Llama, for the tests of checkpoints."""

from pathlib import Path

from tests.training.llamas import adamw, loss_of, tiny_llama, whole
from training.checkpoint import folder as checkpoints
from training.checkpoint.keeping import Keeping
from training.checkpoint.local import LocalCheckpoints
from training.checkpoint.manifest import Progress
from training.checkpoint.reader import load_checkpoint
from training.checkpoint.tensor_files import checkpoint_tensors
from training.checkpoint.writer import CheckpointWriter
from training.model.distributed import single

RANKS = single("cpu")
STATE = {"rate_factor": 0.5, "window": [1.25, 2.5], "reason": "尖"}
TENSORS, MOMENTS = "__0_0.distcp", "__0_moments_0.distcp"


def trained(seed=0, steps=1, **changes):
    model = tiny_llama(seed, **changes)
    optimizer = adamw(model)
    for number in range(steps):
        loss_of(model, number).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def open_writer(store, ranks=RANKS, *, asynchronous=True, before_commit=None, **keeping):
    return CheckpointWriter(
        store,
        ranks,
        keeping=Keeping(**{"newest": 3, "back_steps": 0, **keeping}),
        asynchronous=asynchronous,
        before_commit=before_commit or (lambda: None),
    )


def writer_in(folder, ranks=RANKS, **changes):
    return open_writer(LocalCheckpoints(folder), ranks, **changes)


def progress_of(steps):
    return Progress(steps, steps + 1, steps * 10, "f" * 64, 4)


def save(folder, model, optimizer, steps, loss=None, **changes) -> Path:
    with writer_in(folder, **changes) as writer:
        writer.start(progress_of(steps), model, optimizer, STATE, validation_loss=loss)
        path = writer.finish()
    assert isinstance(path, Path)
    return path


def tensors_of(model, optimizer):
    return {name: whole(tensor) for name, tensor in checkpoint_tensors(model, optimizer).items()}


def loaded(path, ranks=RANKS):
    """Load into another model and return all its tensors."""
    model = tiny_llama(seed=1)
    optimizer = adamw(model)
    state, _ = load_checkpoint(path, model, optimizer, ranks)
    assert state == STATE
    return tensors_of(model, optimizer)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def steps_in(folder):
    assert all(name.startswith("step-") for name in names_in(folder))
    return [int(name.removeprefix("step-")) for name in names_in(folder)]


def never(message):
    raise AssertionError(message)


def newest(folder, warn=never):
    found = checkpoints.latest(LocalCheckpoints(folder), warn)
    assert found is not None
    return found
