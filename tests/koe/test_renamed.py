"""Former names of keys give the present ones, in sections, in lists and along a path."""

import pytest

from koe.errors import ConfigError
from koe.renamed import present_path, with_present_names

RENAMED = {"codec": "snac", "snac.bits": "num_bits", "sources.speech.at": "path", "loss": "mean"}


def test_sections_lists_and_plain_keys_are_renamed(caplog):
    data = {
        "codec": {"bits": 3, "seed": 0},
        "sources": {"speech": [{"at": "a"}, {"path": "b"}, {"at": "c"}], "text": [{"at": "d"}]},
        "loss": 1.5,
    }
    assert with_present_names(data, RENAMED, "plain.yaml") == {
        "snac": {"num_bits": 3, "seed": 0},
        "sources": {"speech": [{"path": "a"}, {"path": "b"}, {"path": "c"}], "text": [{"at": "d"}]},
        "mean": 1.5,
    }
    assert data["loss"] == 1.5  # what is given stays as it is
    assert len(caplog.records) == len(RENAMED)


def test_what_has_no_former_name_is_returned_as_it_is(caplog):
    for data in ({"snac": {"seed": 1}}, {"sources": None}, [], None):
        assert with_present_names(data, RENAMED, "new.yaml") is data
    assert not caplog.records


def test_both_names_at_once_are_refused():
    with pytest.raises(ConfigError, match=r"both\.yaml gives sources\.speech\.path twice"):
        with_present_names({"sources": {"speech": [{"at": 1, "path": 2}]}}, RENAMED, "both.yaml")


def test_a_path_is_renamed_in_every_part():
    assert present_path("codec.bits", RENAMED, "--set") == "snac.num_bits"
    assert present_path("codec.seed", RENAMED, "--set") == "snac.seed"
    assert present_path("codecs", RENAMED, "--set") == "codecs"
