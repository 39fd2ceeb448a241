"""`koe init` writes what a first run needs, and overwrites nothing."""

import json

import jsonschema
import pytest
import yaml

from pipeline.cli.init import LARGE_CORPUS_CLIPS
from pipeline.config.load import load_config
from pipeline.config.reference import packaged_config
from tests.calling import koe

FILES = ("pipeline.yaml", "pipeline.schema.json")


@pytest.mark.parametrize("folder", [(), ("a/new one",)])
def test_it_writes_a_config_and_its_schema_and_says_what_is_next(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = koe("init", *folder)
    assert (code, out) == (0, "")
    root = tmp_path.joinpath(*folder)
    assert {path.name for path in root.iterdir()} == set(FILES)
    config, schema = (root / name for name in FILES)
    jsonschema.validate(yaml.safe_load(config.read_text()), json.loads(schema.read_text()))
    assert load_config(config).run_dir == str(root / "run")
    path = "'a/new one/pipeline.yaml'" if folder else "pipeline.yaml"
    assert [line for line in err.splitlines() if "koe run" in line] == [
        f"  koe run -c {path}    # run the pipeline"
    ]


PUBLISHED = [(0.0, {"text": 2, "speech": 1}), (1.0, {"text": 1, "speech": 1})]


@pytest.mark.parametrize(
    ("options", "ratio"),
    [
        ((), "natural"),
        (("--clips", "100"), "natural"),
        (("--clips", str(LARGE_CORPUS_CLIPS - 1)), "natural"),
        (("--clips", str(LARGE_CORPUS_CLIPS)), PUBLISHED),
    ],
)
def test_only_a_large_corpus_gets_the_ratio_that_leaves_out_data(options, ratio, tmp_path):
    assert koe("init", str(tmp_path), *options)[0] == 0
    text = (tmp_path / "pipeline.yaml").read_text()
    assert load_config(tmp_path / "pipeline.yaml").interleave.ratio == ratio
    assert ("except `interleave.ratio`" in text) == (ratio != "natural")
    assert yaml.safe_load(text) == yaml.safe_load(packaged_config()) | {
        "interleave": yaml.safe_load(text)["interleave"]
    }


def test_it_names_all_files_that_exist(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text("mine")
    code, _, err = koe("init", str(tmp_path))
    assert code == 2
    assert f"{FILES[1]} already exist because" in " ".join(err.split())


@pytest.mark.parametrize("name", FILES)
def test_it_overwrites_nothing(name, tmp_path):
    (tmp_path / name).write_text("mine")
    code, _, err = koe("init", str(tmp_path))
    assert code == 2
    assert f"{name} already exists because" in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = koe("init", str(tmp_path / "file"))
    assert code == 2
    assert "is a file. Name the folder to write into." in " ".join(err.split())
    code, _, err = koe("init", str(tmp_path / "file/folder"))
    assert code == 1
    assert "cannot be written" in " ".join(err.split())
    assert "Traceback" not in err
