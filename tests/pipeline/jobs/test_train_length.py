"""A run of too many epochs is refused before any work, where the shards tell its length."""

import pytest

from koe.errors import ConfigError
from pipeline.config.load import load_config
from pipeline.jobs.train import check_training
from tests.calling import koe
from tests.corpus import write_corpus
from tests.training.shards import write_shards

LONG = ["train.max_steps=121", "train.warmup_steps=1"]  # 121 rows, and the shards have 12


@pytest.fixture
def corpus(tmp_path):
    config = write_corpus(tmp_path)
    write_shards(tmp_path / "run" / "shards", num_rows=12)
    return config


@pytest.mark.parametrize("command", ["run", "train"])
def test_both_commands_refuse_it_before_any_work(corpus, command):
    options = [option for setting in LONG for option in ("--set", setting)]
    code, _, errors = koe(command, "-c", str(corpus), *options)
    assert code == 2
    assert "many_epochs" in errors
    assert "train.max_epochs" in errors
    left = {path.name for path in (corpus.parent / "run").iterdir() if path.is_dir()}
    assert left == {"shards"}, "nothing was planned or read"


def test_the_bound_and_the_name_let_it_through(corpus):
    for more in ("train.max_epochs=11", "train.allow=[few_sequences, many_epochs]"):
        check_training(load_config(corpus, [*LONG, more]))
    with pytest.raises(ConfigError, match="many_epochs"):
        check_training(load_config(corpus, LONG))


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 0}'])
def test_shards_that_the_run_will_write_again_do_not_stop_it(corpus, text):
    (corpus.parent / "run" / "shards" / "index.json").write_text(text)
    check_training(load_config(corpus, LONG))
