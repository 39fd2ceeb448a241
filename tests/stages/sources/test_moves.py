"""Files that were copied elsewhere: how their paths are named, and found again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.sources.files.moves import (
    Move,
    between,
    followed,
    load_moves,
    name_of,
    present_path,
    save_moves,
)

NAMES = st.sampled_from("abcd")
FOLDERS = st.lists(NAMES, min_size=0, max_size=4).map(lambda parts: "".join(f"/{p}" for p in parts))
TAILS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@given(FOLDERS, FOLDERS, TAILS, TAILS)
def test_a_move_takes_every_path_of_the_folder_there_and_back(old, new, one, other):
    move = between(f"{old}/{one}", f"{new}/{one}")
    assert move.to_present(f"{old}/{other}") == f"{new}/{other}"
    assert move.to_planned(f"{new}/{other}") == f"{old}/{other}"


@given(st.lists(FOLDERS, min_size=2, max_size=5), TAILS)
def test_after_any_moves_a_path_of_each_place_leads_to_the_last(places, tail):
    """Whatever the common ends of the folders' names are, which decide the root of a move."""
    planned, *later = (f"{place}/{number}" for number, place in enumerate(places))
    moves = ()
    for place in later:
        move = between(f"{planned}/x/{tail}", f"{place}/x/{tail}")
        moves = followed(moves, move) if moves else (move,)
    for place in (planned, *later[:-1]):
        found = [move.to_present(f"{place}/x/{tail}") for move in moves]
        assert f"{later[-1]}/x/{tail}" in found


@pytest.mark.parametrize(
    ("planned", "present", "move"),
    [
        ("/old/p/a.tar", "/new/p/a.tar", Move("/old", "/new")),
        ("/old/a.tar", "/old/copy/a.tar", Move("/old", "/old/copy")),
        ("/a.tar", "/new/a.tar", Move("", "/new")),
        ("s3://one/x/a.tar", "s3://two/x/a.tar", Move("s3://one", "s3://two")),
    ],
)
def test_a_move_is_that_of_the_folders_that_differ(planned, present, move):
    assert between(planned, present) == move


def test_settings_are_named_as_they_were():
    move = Move("/old", "/new")
    settings = {"audio_root": "/new/audio", "tars": ["/new/a.tar", "/newer/b"], "x": 1, "y": None}
    expected = {"audio_root": "/old/audio", "tars": ["/old/a.tar", "/newer/b"], "x": 1, "y": None}
    assert move.settings_as_planned(settings) == expected


def test_what_was_left_behind_is_found_where_it_is(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for path in (old / "both", old / "left", new / "both", new / "new"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    moves = (Move(str(old), str(new)),)
    found = {name: present_path(f"{old}/{name}", moves) for name in ("both", "left", "gone")}
    assert found == {"both": f"{new}/both", "left": f"{old}/left", "gone": f"{new}/gone"}
    assert present_path(f"{new}/new", moves) == f"{new}/new"


def test_moves_are_kept_and_what_depends_on_a_file_keeps_its_name(tmp_path):
    folder = str(tmp_path)
    before = name_of(folder, "/old/a.gz", "1:1", ".idx")
    assert name_of(folder, "/new/a.gz", "1:1", ".idx") != before
    save_moves(folder, {"clips": Move("/old", "/new")})
    assert load_moves(folder) == {"clips": (Move("/old", "/new"),)}
    assert name_of(folder, "/new/a.gz", "1:1", ".idx") == before
    save_moves(folder, {"clips": Move("/old", "/third")})
    assert load_moves(folder)["clips"] == (Move("/old", "/third"), Move("/new", "/third"))
    save_moves(folder, {})
    assert load_moves(folder)["clips"] == (
        Move("/old", "/old"), Move("/new", "/old"), Move("/third", "/old"),
    )  # fmt: skip
    (tmp_path / "moves.json").write_text("{")
    load_moves.__globals__["_load_moves"].cache_clear()
    assert load_moves(folder) == {}


def test_a_run_that_never_moved_keeps_nothing(tmp_path):
    save_moves(str(tmp_path), {})
    assert not list(tmp_path.iterdir())
