"""The recipes of docs/recipes.md read records in the form of their corpora, by the real stages."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml

from pipeline.config.load import load_config
from pipeline.run_dir.storage import Storage
from tests.calling import koe
from tests.docs.blocks import blocks
from tests.docs.corpora import EMILIA, EXPECTED, write_all

RECIPES = [block for block in blocks("yaml") if block.page == "recipes.md"]


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
    """Add up the receipts: kept and quarantined records of each source."""
    kept, left = Counter[str](), defaultdict[str, Counter[str]](Counter)
    for path in (corpora / f"run-{number}").glob("*/*.json"):
        receipt = json.loads(path.read_text("utf-8"))
        source = receipt["unit"].rsplit("-", 2)[0]
        kept[source] += receipt["kept"]
        left[source].update(receipt["quarantined"])
    return {source: (kept[source], dict(left[source])) for source in kept}


def names_in(number: int) -> set[str]:
    sources = yaml.safe_load(RECIPES[number].text)["sources"]
    return {source["name"] for kind in sources.values() for source in kind}


def test_every_source_of_the_page_has_a_corpus_and_the_other_way_round():
    assert set().union(*map(names_in, range(len(RECIPES)))) == EXPECTED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_a_recipe_reads_its_corpus(number, corpora):
    sources = yaml.safe_load(RECIPES[number].text)["sources"]
    if "speech" in sources:
        run_recipe(corpora, number, "--only", "ingest")
    if "text" in sources:
        run_recipe(corpora, number, "--only", "tokenize", "--set", "sources.speech=[]")
    assert books(corpora, number) == {name: EXPECTED[name] for name in names_in(number)}


def test_the_checks_of_transcripts_are_set_as_the_page_says(corpora):
    (number,) = (n for n, recipe in enumerate(RECIPES) if "transcripts:\n" in recipe.text)
    path = run_recipe(corpora, number, "--to", "ingest")
    checks = load_config(path).transcripts
    assert checks.invented_phrases == ["default"]
    assert (checks.max_repeats, checks.max_characters_per_second) == (8, 20)


def test_a_recipe_takes_few_lines():
    for recipe in RECIPES:
        sources = yaml.safe_load(recipe.text)["sources"]
        for source in (source for kind in sources.values() for source in kind):
            assert len(source) <= 5, f"{source['name']} needs {len(source)} keys"


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
