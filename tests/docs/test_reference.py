"""docs/config.md and pipeline.schema.json say what the models say, and editors can use the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.config.load import load_config
from pipeline.config.models import PipelineConfig
from pipeline.config.reference import (
    COMMAND,
    CONFIG,
    DOCS,
    PACKAGED,
    SCHEMA,
    config_markdown,
    packaged_config,
    schema_text,
    sections,
)
from tests.corpus import write_corpus
from tests.docs.blocks import ROOT, blocks
from training.config import GuardConfig
from training.refusals import REFUSALS

STALE = f"is not what the models say; write it again: .venv/bin/{COMMAND}"
EXAMPLE = {
    "run_dir": "run",
    "sources": {"text": [{"name": "a", "kind": "jsonl", "paths": ["a.jsonl"]}]},
}


def committed() -> jsonschema.Draft202012Validator:
    schema = json.loads((ROOT / SCHEMA).read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_reference_is_up_to_date():
    assert (ROOT / DOCS).read_text("utf-8") == config_markdown(), f"{DOCS} {STALE}"


def test_the_schema_is_up_to_date():
    assert (ROOT / SCHEMA).read_text("utf-8") == schema_text(), f"{SCHEMA} {STALE}"


def test_the_package_carries_the_same_config():
    text = (ROOT / CONFIG).read_text("utf-8")
    assert packaged_config() == text, f"{PACKAGED} is not a copy of {CONFIG}; run {COMMAND}"


def test_every_key_has_a_meaning():
    bare = [
        f"{path}.{name}"
        for path, model in sections(PipelineConfig)
        for name, field in model.model_fields.items()
        if not field.description and not hasattr(field.annotation, "model_fields")
    ]
    assert not bare
    assert [path for path, model in sections(PipelineConfig) if not model.__doc__] == []


CONFIGS = [
    ROOT / "pipeline.yaml",
    ROOT / "pipeline/demo/pipeline.yaml",
    ROOT / "examples" / "cluster.yaml",  # kuberay.yaml is not koe's: tests/docs/test_examples.py
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_configurations_of_the_repository_fit_the_schema(path):
    committed().validate(yaml.safe_load(path.read_text("utf-8")))
    load_config(path)


def test_every_value_that_is_shown_is_the_default():
    """As its head says: `pipeline.yaml` shows the defaults but of the sources and the ratio."""
    shown = load_config(ROOT / "pipeline.yaml").model_dump()
    sources = shown["sources"]
    defaults = PipelineConfig.model_validate({"run_dir": shown["run_dir"], "sources": sources})
    expected = defaults.model_dump()
    expected["interleave"]["ratio"] = shown["interleave"]["ratio"]
    assert shown == expected


def test_the_corpus_of_the_tests_fits_the_schema(tmp_path):
    committed().validate(yaml.safe_load(write_corpus(tmp_path).read_text("utf-8")))


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("scroe", {}),
        ("encode", {"threshold_ovr": 2}),
        ("score", {"windows": "some"}),
        ("train", {"guard": {"sigmas": 3}}),
        ("train", {"workers": 0}),
        ("train", {"allow": ["everything"]}),
        ("sources", {"speech": [{"name": "a", "kind": "webdataset", "path": ["a.tar"]}]}),
        ("sources", {"speech": [{"name": "a", "kind": "tar", "paths": ["a.tar"]}]}),
    ],
)
def test_a_wrong_key_or_value_does_not_fit(section, value):
    validator = committed()
    validator.validate(EXAMPLE)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**EXAMPLE, section: value})


def as_config(text: str) -> dict[str, Any]:
    """Add to a part of a configuration what every one must have."""
    return {**EXAMPLE, **(yaml.safe_load(text) or {})}


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.page)
def test_every_yaml_block_of_the_pages_loads(block, tmp_path: Path):
    data = as_config(block.text)
    committed().validate(data)
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    load_config(path)


def test_the_page_about_spikes_names_the_guards_defaults():
    said = {
        "window_steps": 128, "clip_sigmas": 4.0, "skip_sigmas": 8.0, "min_deviation": 0.02,
        "max_loss": 15.0, "max_gradient_norm": 1000.0, "within_steps": 64,
        "lower_rate_after_skips": 3, "rate_factor": 0.5, "roll_back_after_skips": 6,
        "roll_back_steps": 100, "skip_data_steps": 200, "max_rollbacks": 3, "climb_factor": 5.0,
        "restore_rate_after_steps": 500, "enabled": True,
    }  # fmt: skip
    assert GuardConfig().model_dump() == said
    page = (ROOT / "docs/spikes.md").read_text("utf-8")
    assert [name for name in said if name not in page] == ["window_steps", "min_deviation"]
    assert [name for name in REFUSALS if f"`{name}`" not in page] == []
