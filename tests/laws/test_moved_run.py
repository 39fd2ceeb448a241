"""A run that was copied elsewhere is the same run: nothing is done again, and what is left is done."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.calling import koe
from tests.corpus import run_bytes, write_corpus

pytestmark = [pytest.mark.law, pytest.mark.slow]


def copy(source: Path, to: Path) -> Path:
    """Copy a folder as people do."""
    subprocess.run(["cp", "-a", str(source), str(to)], check=True)
    return to


def stamps(run: Path) -> dict[str, int]:
    """When each table, receipt and shard was written; every run writes the index of the shards."""
    files = [path for name in ("*.arrow", "*/*.json") for path in run.rglob(name)]
    kept = (path for path in files if path.name not in ("index.json", "moves.json"))
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in kept}


def run_again(folder: Path, *options: str) -> str:
    """Run up to the shards, verify, and return what the run said."""
    config = ("-c", str(folder / "pipeline.yaml"), *options)
    code, _, said = koe("run", "--to", "interleave", *config)
    assert code == 0, said
    code, _, errors = koe("verify", *config)
    assert code == 0, errors
    return said


def assert_nothing_is_done(folder: Path, run: Path, *options: str) -> None:
    before, content = stamps(run), run_bytes(run)
    said = run_again(folder, *options)
    assert "planning" not in said, "no file is scanned again"
    assert stamps(run) == before
    assert run_bytes(run) == content


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with a run that was made in another, which is gone."""
    root = tmp_path_factory.mktemp("moved")
    project = root / "here" / "project"
    config = write_corpus(project)
    code, _, errors = koe("run", "-c", str(config))
    assert code == 0, errors
    (root / "there").mkdir()
    copy(project, root / "there" / "project")
    shutil.rmtree(root / "here")
    return root / "there" / "project"


@pytest.fixture
def project(copied: Path, tmp_path: Path) -> Path:
    return copy(copied, tmp_path / "project")


def test_a_copy_of_the_whole_project_does_nothing_again(project: Path):
    assert_nothing_is_done(project, project / "run")
    assert_nothing_is_done(project, project / "run")


def test_a_run_that_moves_twice_is_still_the_same(project: Path, tmp_path: Path):
    run_again(project)
    (tmp_path / "far").mkdir()
    moved = tmp_path / "far" / "renamed"
    project.rename(moved)
    assert_nothing_is_done(moved, moved / "run")


def test_the_run_directory_alone_may_move(project: Path, tmp_path: Path):
    run_again(project)
    run = tmp_path / "run-elsewhere"
    (project / "run").rename(run)
    assert_nothing_is_done(project, run, "--set", f"run_dir={run}")


def test_the_corpus_alone_may_move(project: Path, tmp_path: Path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for path in project.glob("*.*"):
        if path.suffix != ".yaml":
            path.rename(corpus / path.name)
    options = []
    for kind, name in (("speech", "manifest.jsonl"), ("text", "samples.jsonl")):
        source = {"speech": "clips, kind: manifest", "text": "text, kind: jsonl"}[kind]
        text = f"[{{name: {source}, paths: [{corpus / name}]}}]"
        options += ["--set", f"sources.{kind}={text}"]
    assert_nothing_is_done(project, project / "run", *options)


def test_a_copy_of_an_unfinished_run_goes_on_where_its_files_are_now(project: Path):
    before = run_bytes(project / "run")
    for stage in ("score", "encode", "tokenize", "interleave", "shards"):
        shutil.rmtree(project / "run" / stage)
    (unit, *_) = sorted((project / "run" / "ingest").glob("*.arrow"))
    unit.unlink()  # this one is read where it is now, the others were where it was
    run_again(project)
    after = run_bytes(project / "run")
    assert after.keys() == before.keys()
    shards = [name for name in before if name.startswith("shards/")]
    assert {name: after[name] for name in shards} == {name: before[name] for name in shards}
    elsewhere = project.with_name("again")
    project.rename(elsewhere)
    shutil.rmtree(elsewhere / "run" / "encode")
    run_again(elsewhere)
    assert {name: run_bytes(elsewhere / "run")[name] for name in shards} == {
        name: before[name] for name in shards
    }


def test_a_file_that_changed_is_done_again_and_no_other(project: Path):
    run_again(project)
    before = stamps(project / "run")
    with open(project / "samples.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"instruction": "一に一を足す", "input": "", "output": "二"}')
    said = run_again(project)
    assert "planning text" in said
    assert "planning clips" not in said
    ingested = [name for name in before if name.startswith(("ingest", "score", "encode"))]
    assert {name: stamps(project / "run")[name] for name in ingested} == {
        name: before[name] for name in ingested
    }


def test_training_goes_on_in_the_copy(project: Path):
    config = ("-c", str(project / "pipeline.yaml"))
    code, _, said = koe("train", *config)
    assert code == 0, said
    assert "nothing to train: 2 of 2 steps are done" in said
    more = ("--set", "train.max_steps=3", "--set", "train.resume_with_changes=[max_steps]")
    code, _, said = koe("train", *config, *more)
    assert code == 0, said
    assert "resuming after step 2" in said
    assert os.path.isdir(project / "run/train/checkpoints/step-00000003")


def test_the_page_of_a_copy_plays_its_clips(project: Path, tmp_path: Path):
    run_again(project)
    options = ("--html", str(tmp_path / "page"), "--html-clips", "2")
    code, _, said = koe("stats", "-c", str(project / "pipeline.yaml"), *options)
    assert code == 0, said
    (page,) = (tmp_path / "page").glob("*.html")
    text = page.read_text(encoding="utf-8")
    assert "data:audio/mpeg" in text
    assert "the source cannot be read" not in text
