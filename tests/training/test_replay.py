import io

import pytest
from rich.console import Console

from koe.errors import ConfigError
from pipeline.terminal.results import replay_view
from tests.training.helpers import small_config, small_shards
from training import loop
from training.config import GuardConfig
from training.data.shard_rows import ShardRows
from training.metrics import read_events
from training.model.distributed import single
from training.replay import replay

RANKS = single("cpu")


@pytest.fixture(scope="module")
def exploded(tmp_path_factory):
    """A run whose second step breaks an absolute limit: with the weights of step 1 at hand."""
    folder = tmp_path_factory.mktemp("replay")
    shards = small_shards(folder / "shards")
    config = small_config(max_steps=1, checkpoint_every_steps=1)
    loop.train(config, shards, folder / "out", RANKS)
    guard = GuardConfig(max_gradient_norm=1e-3, max_rollbacks=0)
    strict = small_config(max_steps=2, guard=guard, resume_with_changes=["max_steps"])
    with pytest.raises(loop.Exploded):
        loop.train(strict, shards, folder / "out", RANKS)
    return config, shards, folder / "out"


def test_a_logged_step_is_run_again_with_the_same_numbers(exploded):
    config, shards, out = exploded
    event = next(event for event in read_events(out) if event["event"] == "skip")
    found = replay(config, shards, out, event["id"])
    assert found.weights_step == 1
    assert found.loss == pytest.approx(event["loss"], rel=1e-6)
    assert found.gradient_norm == pytest.approx(event["gradient_norm"], rel=1e-5)
    logged = {document["id"]: document["loss"] for document in event["documents"]}
    again = {document.id: document.loss for document in found.documents}
    assert again == pytest.approx(logged, rel=1e-5)
    ordered = [document.loss for document in found.documents]
    assert ordered == sorted(ordered, reverse=True)
    assert set(found.row_gradient_norms) == set(event["rows"])
    # Rows of several sizes pull in their own directions: together less than the sum of all.
    norms = found.row_gradient_norms.values()
    assert max(norms) < found.gradient_norm < sum(norms)
    rows = ShardRows(shards, "train")
    for document in found.documents:
        place = rows[document.row].document_ids.index(document.id)
        assert document.tokens == rows[document.row].document_lengths[place] - 1  # supervised


def test_the_view_shows_both_numbers_and_the_worst_documents(exploded):
    config, shards, out = exploded
    found = replay(config, shards, out, "E0003")
    console = Console(file=io.StringIO(), width=160)
    console.print(replay_view(found, most=2))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "E0003 skip at step 1: gradient norm" in shown
    assert f"again   loss {found.loss:.4f}" in shown
    assert found.documents[0].id in shown
    assert found.documents[-1].id not in shown
    assert f"and {len(found.documents) - 2} more" in shown


def test_events_without_rows_or_checkpoint_are_refused(exploded, tmp_path):
    config, shards, out = exploded
    with pytest.raises(ConfigError, match=r"no event E9999 because events with rows: E0003"):
        replay(config, shards, out, "E9999")
    with pytest.raises(ConfigError, match=r"E0001 .started. has no rows"):
        replay(config, shards, out, "E0001")
    with pytest.raises(ConfigError, match="has no event"):
        replay(config, shards, tmp_path, "E0001")
