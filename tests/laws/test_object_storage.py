"""The whole way on an object store, sources and run alike: what is left is what a local disk holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from koe.remote import file_system
from tests.calling import koe
from tests.corpus import write_corpus
from tests.s3_server import S3Server
from tests.training.remote import upload

pytestmark = [pytest.mark.law, pytest.mark.slow]

FAILING = 0.05  # share of the requests
SHARDS = {"max_row_tokens": 128, "shard_megabytes": 0.004, "validation_share": 0.1}
SPIKE = ("max_loss=0.01", "roll_back_after_skips=3", "max_rollbacks=0")


@dataclass(frozen=True)
class Way:
    """The same corpus and settings twice: all on a local disk, and all on a store."""

    here: Path
    there: Path
    place: str  # of the run there

    def koe(self, *command: str, config: Path | None = None) -> str:
        """Run `koe` on the store's configuration, or on another; it must succeed."""
        code, out, errors = koe(*command, "-c", str(config or self.there))
        assert code == 0, errors
        return out

    def files(self, under: str) -> dict[str, bytes]:
        """Read what lies below a folder of the run on the store."""
        system, base = file_system(f"{self.place}/{under}", use_listings_cache=False)
        return {path[len(base) + 1 :]: system.cat_file(path) for path in system.find(base)}


def configured(path: Path, **changes: object) -> Path:
    settings = yaml.safe_load(path.read_text("utf-8")) | {"interleave": SHARDS} | changes
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def local_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def way(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """Do both runs, from the first unit to the trained model; requests fail from then on, too."""
    folder = tmp_path_factory.mktemp("way")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KOE_CACHE", str(folder / "cache"))
        here = configured(write_corpus(folder / "here"))
        bucket = s3.make_bucket("way")
        upload(here.parent, f"{bucket}/corpus")
        sources = yaml.safe_load(here.read_text("utf-8"))["sources"]
        for source in (*sources["speech"], *sources["text"]):
            source["paths"] = [f"{bucket}/corpus/{path}" for path in source["paths"]]
        (folder / "there").mkdir()
        there = folder / "there" / "pipeline.yaml"
        there.write_bytes(here.read_bytes())
        configured(there, sources=sources, run_dir=f"{bucket}/run")
        found = Way(here, there, f"{bucket}/run")
        found.koe("run", config=here)
        s3.fail(share=FAILING)
        try:
            found.koe("run")
            yield found
        finally:
            s3.fail()


def test_shards_and_weights_are_those_of_a_local_run(way: Way) -> None:
    run = way.here.parent / "run"
    shards = {
        name: data for name, data in local_files(run / "shards").items() if name[-3:] != ".md"
    }
    assert sum(name.endswith(".arrow") for name in shards) > 1
    there = way.files("shards")
    assert {name: there.get(name) for name in shards} == shards
    weights = local_files(run / "train" / "checkpoints")
    assert {"manifest.json", "tensors.json"} <= {Path(name).name for name in weights}
    assert way.files("train/checkpoints") == weights


def test_what_looks_at_a_run_looks_at_it_there(way: Way) -> None:
    rows = json.loads(way.koe("status", "--json"))
    assert {row["left"] for row in rows} == {0}
    ours, theirs = (
        json.loads(way.koe("stats", "--json", config=config)) for config in (way.there, way.here)
    )
    for stats in (ours, theirs):
        for example in stats["quarantine_examples"]:
            del example["detail"], example["location"]  # where the file lies
    assert ours == theirs
    assert way.koe("verify") == way.koe("verify", config=way.here)
    assert "clips/3.flac" in way.koe("inspect", "clips/3.flac")
    way.koe("train", "--report")
    assert way.files("train")["report.html"]


def test_the_model_is_exported_from_there_to_there(way: Way, tmp_path: Path) -> None:
    way.koe("export", f"{way.place}/model")
    way.koe("export", str(tmp_path / "model"), config=way.here)
    model = local_files(tmp_path / "model")
    assert any(name.endswith(".safetensors") for name in model)
    assert way.files("model") == model


def test_the_same_command_again_does_nothing(way: Way, s3: S3Server) -> None:
    s3.clear()
    way.koe("run")
    written = [path for method, path, _ in s3.log() if method in ("PUT", "POST", "DELETE")]
    assert not [path for path in written if path.endswith(".arrow") or "/checkpoints/" in path]


def test_a_step_is_repeated_from_there(way: Way) -> None:
    """Last, because it trains on."""
    longer = ("train.max_steps=20", "train.resume_with_changes=[max_steps]")
    settings = (*(f"train.guard.{key}" for key in SPIKE), *longer)
    sets = [part for setting in settings for part in ("--set", setting)]
    code, _, errors = koe("train", *sets, "-c", str(way.there))
    assert code == 1, errors
    assert "training was stopped" in errors
    events = way.files("train")["events.jsonl"].decode().splitlines()
    event = next(event["id"] for event in map(json.loads, events) if event.get("rows"))
    assert event in way.koe("train", "--replay", event)
