"""A stored plan is whole and of this version, or it is refused, and made again by a run."""

import json
from dataclasses import replace

import pytest

from koe.errors import ContractError
from koe.schema import SCHEMA_VERSION, SPEECH, Unit
from pipeline.run_dir.plan import PLAN, load_plan, make_plan
from pipeline.run_dir.storage import Storage
from stages.sources.files.moves import Move
from stages.sources.planning import unit_prefix

UNIT = Unit("u", "clips", SPEECH, "a.jsonl", "1:1", 0, 1, 1)


class Clips:
    name, modality = "clips", SPEECH

    def __init__(self, unit=UNIT, relative="a.jsonl"):
        self.unit, self.relative_name = unit, relative

    def units(self, known=lambda path, stamp: None):
        return known(self.unit.path, self.unit.stamp) or [self.unit]

    def relative(self, unit):
        return self.relative_name

    def remarks(self, units):
        return {"seen": len(units)}


def body(**changes):
    whole = {"schema_version": SCHEMA_VERSION, "modalities": {"clips": SPEECH}, "files": {}}
    return json.dumps(whole | changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "[]",
        "null",
        "\xff",
        body(schema_version=SCHEMA_VERSION + 1),
        body(files={"k": [{"unit": "u"}]}),
        body(files={"k": 3}),
        body(modalities=["clips"]),
        body(modalities={}, files={"k": [UNIT.__dict__]}),
    ],
)
def test_a_plan_that_is_not_whole_is_refused_and_planned_again(tmp_path, text):
    storage = Storage(str(tmp_path))
    storage.write_bytes(PLAN, text.encode("latin-1"))
    with pytest.raises(
        ContractError, match=r"plan\.json in .* is not a complete plan.*Run `koe run`"
    ):
        load_plan(storage)
    scanned = []
    made = make_plan([(Clips(), {})], storage, lambda source, path: scanned.append(path))
    assert scanned == ["a.jsonl"]
    assert load_plan(storage) == made
    make_plan([(Clips(), {})], storage, lambda source, path: scanned.append(path))
    assert scanned == ["a.jsonl"]


def at(folder, stamp="1:1"):
    """A unit of a file in this folder, called as a source calls it."""
    name = f"{unit_prefix('clips', 'a.jsonl')}00000"
    return replace(UNIT, unit=name, path=f"{folder}/a.jsonl", stamp=stamp)


def planned(storage, unit, settings, relative="a.jsonl"):
    """Plan a source of one unit; return the plan, and the files that were scanned."""
    scanned = []
    source = Clips(unit, relative)
    plan = make_plan([(source, settings)], storage, lambda _, path: scanned.append(path))
    return plan, scanned


@pytest.mark.parametrize(
    ("unit", "settings", "relative", "is_known"),
    [
        (at("/new/x"), {"audio_root": "/new/audio", "id": "key"}, "a.jsonl", True),
        (at("/old/x"), {"audio_root": "/old/audio", "id": "key"}, "a.jsonl", True),
        (at("/new/x"), {"audio_root": "/old/audio", "id": "key"}, "a.jsonl", True),  # left there
        (at("/new/x"), {"audio_root": "/other", "id": "key"}, "a.jsonl", False),
        (at("/new/x"), {"audio_root": "/new/audio", "id": "other"}, "a.jsonl", False),
        (at("/new/x", "1:2"), {"audio_root": "/new/audio", "id": "key"}, "a.jsonl", False),
        (at("/new/x"), {"audio_root": "/new/audio", "id": "key"}, "x/a.jsonl", False),
    ],
)
def test_a_file_that_was_copied_with_its_folders_is_not_scanned_again(
    tmp_path, unit, settings, relative, is_known
):
    storage = Storage(str(tmp_path))
    planned(storage, at("/old/x"), {"audio_root": "/old/audio", "id": "key"})
    before = storage.find_bytes(PLAN)
    plan, scanned = planned(storage, unit, settings, relative)
    assert (scanned == []) is is_known
    assert plan.units[0].path == unit.path, "a new plan names the file where it is"
    if is_known:
        assert storage.find_bytes(PLAN) == before, "what is stored names it where it was"
        again, scanned = planned(storage, unit, settings, relative)
        assert (again, scanned) == (plan, [])


class Folder(Clips):
    """A source of the files of a folder, with a unit of each."""

    def __init__(self, folder, names):
        self.folder, self.names = folder, names

    def units(self, known=lambda path, stamp: None):
        for name in self.names:
            path, unit = f"{self.folder}/{name}", f"{unit_prefix('clips', name)}00000"
            yield from known(path, UNIT.stamp) or [replace(UNIT, unit=unit, path=path)]

    def relative(self, unit):
        return unit.path.removeprefix(f"{self.folder}/")


def test_a_file_that_came_after_a_move_moves_with_the_others(tmp_path):
    storage, scanned = Storage(str(tmp_path)), []

    def moves(folder, *names):
        source = Folder(folder, names)
        plan = make_plan([(source, {})], storage, lambda _, path: scanned.append(path))
        assert [unit.path for unit in plan.units] == [f"{folder}/{name}" for name in names]
        return plan.moves

    assert not moves("/one/c", "a", "b")
    assert moves("/two/c", "a", "b", "new") == {"clips": Move("/one", "/two")}
    assert moves("/three/c", "a", "b", "new") == {"clips": Move("/one", "/three")}
    assert not moves("/one/c", "a", "b", "new"), "back where it was"
    assert scanned == ["/one/c/a", "/one/c/b", "/two/c/new"]


def test_a_source_of_which_one_file_stays_has_not_moved(tmp_path):
    storage = Storage(str(tmp_path))
    make_plan([(Folder("/one", ["a", "b"]), {})], storage)

    class Parted(Folder):
        def units(self, known=lambda path, stamp: None):
            yield from Folder("/one", ["a"]).units(known)
            yield from Folder("/two", ["b"]).units(known)

    scanned = []
    plan = make_plan([(Parted("/two", []), {})], storage, lambda _, path: scanned.append(path))
    assert scanned == ["/two/b"]
    assert not plan.moves
