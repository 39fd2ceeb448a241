"""`koe verify` refuses clips that left for what they hold where the settings do not say so, and
clips that stay though they do."""

from __future__ import annotations

import shutil

import pytest

from koe.schema import SPEECH, split_location
from tests.forging import Forged, refused
from tests.texts_run import EVERY, copied_run, in_section, run

pytestmark = pytest.mark.slow

LEFT_OUT = "interleave/order.excluded.arrow"
CHECKS = {"transcripts": {"language": "ja", "max_repeats": 8}}
RATES = {"transcripts": {"language": "ja", "max_rate_deviations": 0.5}}


@pytest.fixture
def plain(tmp_path_factory, tmp_path) -> Forged:
    """A run without any check."""
    copied_run(tmp_path_factory.getbasetemp(), tmp_path)
    return Forged(tmp_path / "run")


@pytest.fixture(scope="module")
def checked_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    path = copied_run(tmp_path_factory.getbasetemp(), folder)
    run(path, in_section("transcripts", EVERY | {"max_rate_deviations": 0.5}))
    return folder / "run"


@pytest.fixture
def checked(checked_run, tmp_path) -> Forged:
    """A run with every check of transcripts."""
    return Forged(shutil.copytree(checked_run, tmp_path / "checked"))


def set_content(forged: Forged, stage: str, units: list[str], **fields) -> None:
    """Let receipts say that other settings made their tables; None takes a section out."""
    for unit in units:
        content = forged.receipt(stage, unit).content | fields
        content = {name: value for name, value in content.items() if value is not None}
        forged.amend(stage, unit, content=content)
    forged.seal()


def set_reason(forged: Forged, stage: str, unit: str, old: str, new: str) -> None:
    """Give another reason to what was left out for one, also in the receipt."""

    def change(rows) -> None:
        for row in rows:
            row["reason"] = new if row["reason"] == old else row["reason"]

    forged.rows(f"{stage}/{unit}.excluded.arrow", change)
    rejected = forged.receipt(stage, unit).rejected
    assert old in rejected
    counts = {new: rejected.get(new, 0) + rejected[old]}
    forged.amend(stage, unit, rejected={k: v for k, v in rejected.items() if k != old} | counts)
    forged.seal()


def test_the_runs_are_sound_before_they_are_damaged(plain, checked):
    plain.verify()
    checked.verify()
    assert set(checked.order().rejected) == {"text_long_for_source", "text_short_for_source"}


def test_a_kept_clip_must_pass_the_checks(plain):
    set_content(plain, "tokenize", plain.units(SPEECH), **CHECKS)
    refused(
        plain, r"tokenize/said-.*-00000.arrow kept said/again.*checks .* say repeated_text: '長'"
    )


def test_a_rejected_clip_must_fail_the_checks(checked):
    set_content(checked, "tokenize", checked.units(SPEECH), transcripts=None)
    refused(checked, r"tokenize/said-.*-00000.arrow rejected said/again as repeated_text.*it fits")


def test_a_rejected_clip_must_have_the_reason_that_the_checks_give(checked):
    unit = checked.units(SPEECH)[0]
    set_reason(checked, "tokenize", unit, "repeated_text", "other_script")
    refused(checked, r"rejected said/again as other_script.*checks .* say repeated_text")


def test_checks_that_are_not_known_are_those_of_another_version(plain):
    set_content(plain, "tokenize", plain.units(SPEECH)[:1], transcripts={"max_repeat": 8})
    refused(plain, "settings that are not known.*of transcripts cannot be read")


def test_rates_decide_only_where_the_settings_say_so(checked):
    set_content(checked, "interleave", ["order"], transcripts=None)
    refused(checked, "sample said/.* is left out.*transcripts.max_rate_deviations is null")


def test_an_unusual_rate_must_leave(plain):
    set_content(plain, "interleave", ["order"], **RATES)
    refused(plain, "sample said/.* is not left out for its rate.*are unusual")


def test_a_usual_rate_must_stay(checked):
    content = checked.order().content["transcripts"] | {"max_rate_deviations": 9.0}
    set_content(checked, "interleave", ["order"], transcripts=content)
    refused(checked, "sample said/.* is left out.*are usual for its source")


def test_a_slow_clip_is_no_fast_one(checked):
    set_reason(checked, "interleave", "order", "text_short_for_source", "text_long_for_source")
    refused(checked, "sample said/.* is not left out for its rate")


def test_an_order_leaves_nothing_out_for_reasons_of_its_own(checked):
    set_reason(checked, "interleave", "order", "text_short_for_source", "boring")
    refused(
        checked, f"{LEFT_OUT}:.* must not leave out said/.* because an order has no reason 'boring'"
    )


@pytest.fixture(scope="module")
def dropped_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dropped")
    path = copied_run(tmp_path_factory.getbasetemp(), folder)
    run(path, in_section("interleave.duplicates", {"audio": "drop", "text": "drop"}))
    return folder / "run"


@pytest.fixture
def dropped(dropped_run, tmp_path) -> Forged:
    """A run without clips of the same audio, or of the same speaker and text."""
    return Forged(shutil.copytree(dropped_run, tmp_path / "dropped"))


def set_duplicates(forged: Forged, **values: str) -> None:
    settings = {"audio": "keep", "codes": "keep", "text": "keep"}
    settings |= forged.order().content.get("duplicates", {})
    set_content(forged, "interleave", ["order"], duplicates=settings | values)


def change_left_out(forged: Forged, reason: str, **fields: str) -> None:
    """Change the first clip that was left out for a reason."""

    def change(rows) -> None:
        next(row for row in rows if row["reason"] == reason).update(fields)

    forged.rows(LEFT_OUT, change)
    forged.seal()


def test_the_run_without_duplicates_is_sound_before_it_is_damaged(dropped):
    dropped.verify()
    assert set(dropped.order().rejected) == {"duplicate_audio", "duplicate_text"}
    set_duplicates(dropped, codes="drop")  # equal codes were equal audio here
    refused(dropped, "train-00000.json names other settings")


@pytest.mark.parametrize("kind", ["audio", "text"])
def test_a_repetition_leaves_only_where_the_settings_say_so(dropped, kind):
    set_duplicates(dropped, **{kind: "keep"})
    refused(dropped, f"sample said/.* is left out because interleave.duplicates.{kind} is keep")


@pytest.mark.parametrize("kind", ["codes", "text"])
def test_a_repetition_must_leave(plain, kind):
    set_duplicates(plain, **{kind: "drop"})
    refused(plain, f"sample said/.* is not left out because sample said/.* has its {kind}")


@pytest.mark.parametrize("reason", ["duplicate_audio", "duplicate_text"])
def test_the_first_of_its_kind_is_no_repetition(dropped, reason):
    """Leave out the first clip, and let its repetition stay."""
    rows = dropped.storage.read_table(LEFT_OUT).to_pylist()
    detail = next(row["detail"] for row in rows if row["reason"] == reason)
    location = detail.split(" ")[-1]
    unit, row = split_location(location)
    id = dropped.storage.read_table(f"tokenize/{unit}.arrow")["id"][row].as_py()
    change_left_out(dropped, reason, id=id, location=location)
    refused(
        dropped, "sample said/.* is left out as a repetition because no earlier clip that stays"
    )


def test_a_repetition_of_one_kind_is_none_of_another(dropped):
    set_reason(dropped, "interleave", "order", "duplicate_audio", "duplicate_text")
    refused(dropped, "left out as a repetition because no earlier clip that stays has its text")


def test_keys_that_are_not_known_are_those_of_another_version(dropped):
    set_content(dropped, "interleave", ["order"], duplicates={"sound": "drop"})
    refused(dropped, "settings that are not known.*of duplicates cannot be read")
