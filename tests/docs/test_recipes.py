"""The recipes of docs/recipes.md read records in the form of their corpora, by the real stages."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from pipeline.run_dir.storage import Storage
from tests.calling import koe
from tests.docs.blocks import blocks
from tests.docs.corpora import EMILIA, write_all

RECIPES = [block for block in blocks("yaml") if block.page == "recipes.md"]
# Kept clips or samples, and the quarantined ones by reason, of each source of each recipe.
EXPECTED = [
    {"jchat": (2, {"missing_transcript": 1})},
    {"reazonspeech": (1, {"missing_transcript": 1})},
    {"reazonspeech": (1, {})},
    {"emilia": (1, {})},
    {"llm_japanese": (2, {"missing_answer": 1})},
    {"jchat": (2, {"missing_transcript": 1}), "llm_japanese": (2, {"missing_answer": 1})},
]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    """The corpora as their makers give them."""
    root = tmp_path_factory.mktemp("recipes")
    write_all(root)
    return root


def run_recipe(corpora: Path, number: int, *arguments: str) -> Path:
    """Run a recipe with one process into a directory of its own."""
    config = yaml.safe_load(RECIPES[number].text)
    config |= {"run_dir": f"run-{number}", "engine": "inline", "max_quarantine_share": 0.5}
    config["snac"] = {"weights": "untrained", "sha256": None}
    config["plan"] = {"clips_per_unit": 10, "samples_per_unit": 10}
    path = corpora / f"recipe-{number}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    code, _, err = koe("run", "-c", str(path), *arguments)
    assert code == 0, err
    return path


def books(corpora: Path, number: int) -> dict[str, tuple[int, dict[str, int]]]:
    """Read the receipts: kept and quarantined records of each source, of one unit each."""
    found = {}
    for path in (corpora / f"run-{number}").glob("*/*.json"):
        receipt = json.loads(path.read_text("utf-8"))
        source = receipt["unit"].split("-")[0]
        found[source] = (receipt["kept"], receipt["quarantined"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_a_recipe_reads_its_corpus(number, corpora):
    assert len(RECIPES) == len(EXPECTED)
    sources = yaml.safe_load(RECIPES[number].text)["sources"]
    if "speech" in sources:
        run_recipe(corpora, number, "--only", "ingest")
    if "text" in sources:
        run_recipe(corpora, number, "--only", "tokenize", "--set", "sources.speech=[]")
    assert books(corpora, number) == EXPECTED[number]


def test_a_segment_of_a_dialogue_has_the_text_inside_it(corpora):
    run_recipe(corpora, 0, "--only", "ingest")
    (name,) = [path.stem for path in (corpora / "run-0/ingest").glob("*.json")]
    rows = Storage(str(corpora / "run-0")).read_table(f"ingest/{name}.arrow").to_pylist()
    names = ("id", "start_seconds", "text", "speaker")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("jchat/d-1/s0", 0.0, "違うんですよ。", "d-1/SPEAKER_01"),
        ("jchat/d-1/s1", 1.74, "なんだ。", "d-1/SPEAKER_00"),
    ]


def test_emilia_keeps_its_own_score(corpora):
    run_recipe(corpora, 3, "--to", "score")
    (name,) = [p.stem for p in (corpora / "run-3/score").glob("*.json")]
    (row,) = Storage(str(corpora / "run-3")).read_table(f"score/{name}.arrow").to_pylist()
    assert row["id"] == f"emilia/{EMILIA['id']}"
    assert row["ovrl"] == pytest.approx(EMILIA["dnsmos"])
    assert (row["sig"], row["bak"]) == (None, None)
    assert (row["speaker"], row["text"]) == (EMILIA["speaker"], EMILIA["text"])
    assert os.path.basename(row["audio_path"]) == "JA-B000000.tar"
