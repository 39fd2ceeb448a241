"""`koe export --best`, `--step` and `--ema`: which weights of a run are written."""

import json
from contextlib import closing

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from koe.errors import ConfigError
from pipeline.cli.app import app
from pipeline.config.load import load_config
from pipeline.jobs.train import training_place
from tests.training.helpers import SMALLEST, one_thread
from tests.training.shards import write_shards
from training import loop
from training.checkpoint.folder import open_store
from training.checkpoint.reader import load_weights
from training.model.distributed import single
from training.model.llama import build_model

__all__ = ["one_thread"]  # applies to every test here

pytestmark = pytest.mark.slow

TRAIN = {
    **SMALLEST,
    "max_steps": 4,
    "learning_rate": 0.01,
    "keep_checkpoints": 1,
    "keep_weights_only": True,
    "guard": {"roll_back_steps": 1},
    "ema_decay": 0.5,
    "evaluation": {"every_steps": 2, "prompts": 0, "max_rows": 1},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose loss is lowest at step 2, of which only the weights are left."""
    folder = tmp_path_factory.mktemp("trained")
    shards = write_shards(folder / "run/shards", num_rows=12)
    index = json.loads((shards / "index.json").read_text())
    (shards / "index.json").write_text(json.dumps(index | {"codec": {"label": "UNTRAINED"}}))
    source = {"name": "clips", "kind": "manifest", "paths": ["none.jsonl"]}
    settings = {"run_dir": "run", "sources": {"speech": [source]}, "train": TRAIN}
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(settings))
    config = load_config(path, None)

    def spoil(run, save_and_evaluate=loop.save_and_evaluate):
        if run.progress.steps == 4:
            torch.nn.init.constant_(run.plain_model.model.norm.weight, 100.0)
        save_and_evaluate(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_and_evaluate", spoil)
        loop.train(config.train, shards, training_place(config), single("cpu"))
    return path, config


def weights_of(config, steps, average=False):
    model = build_model(config.train)
    with closing(open_store(f"{training_place(config)}/checkpoints")) as store:
        load_weights(store.fetch(steps), model, average)
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("options", "steps", "average"),
    [(["--best"], 2, False), (["--checkpoint", "4", "--ema"], 4, True)],
)
def test_the_weights_asked_for_are_written(trained, tmp_path, options, steps, average):
    path, config = trained
    out = tmp_path / "model"
    arguments = ["export", str(out), "--config", str(path), "--dtype", "fp32", *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    found, expected = load_file(out / "model.safetensors"), weights_of(config, steps, average)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    card = (out / "README.md").read_text()
    assert f"| optimizer steps | {steps} |" in card
    assert ("averaged" in card) is average


def test_what_is_not_there_is_named(trained, tmp_path):
    path, _ = trained
    start = ["export", str(tmp_path / "model"), "--config", str(path)]
    for options, why in (
        (["--best", "--step", "2"], "exclude each other"),
        (["--step", "9"], "of step 9"),
    ):
        with pytest.raises(ConfigError, match=why):
            CliRunner().invoke(app, [*start, *options], catch_exceptions=False)
    assert not (tmp_path / "model").exists()
