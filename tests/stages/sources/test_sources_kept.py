"""What planning keeps in the run directory: asked for in one request, and a store that fails says so."""

from __future__ import annotations

import numpy as np
import pytest

from koe.errors import StorageError
from stages.sources.files.kept import keep, kept, kept_numbers


def test_what_was_kept_is_found_and_nothing_is_none(tmp_path) -> None:
    folder = str(tmp_path / "source_index")
    for place in (folder, f"file://{folder}-of-a-url", "memory://kept/source_index"):
        assert kept(place, "a") is None
        assert kept_numbers(place, "a") is None
        keep(place, "a", np.arange(3).tobytes())
        keep(place, "empty", b"")
        assert kept(place, "a") == np.arange(3).tobytes()
        assert kept_numbers(place, "a").tolist() == [0, 1, 2]
        assert kept_numbers(place, "empty").tolist() == []


def test_a_disk_that_fails_is_no_missing_file(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "a").mkdir(parents=True)
    with pytest.raises(StorageError, match="file/a cannot be written"):
        keep(str(tmp_path / "file"), "a", b"")
    for ask in (kept, kept_numbers):
        with pytest.raises(StorageError, match="cannot be read"):
            ask(str(tmp_path / "file"), "a")
    with pytest.raises(StorageError, match="folder/a cannot be read"):
        kept(str(tmp_path / "folder"), "a")


@pytest.mark.slow
def test_one_request_asks_a_store_and_its_failure_is_told(s3, monkeypatch) -> None:
    folder = s3.make_bucket("kept") + "/run/source_index"
    keep(folder, "a", b"12345678")
    s3.clear()
    assert kept(folder, "a") == b"12345678"
    assert kept(folder, "b") is None
    assert kept_numbers(folder, "a").tolist() == [int.from_bytes(b"12345678", "little")]
    assert s3.counts() == {"GET": 3}
    with pytest.raises(StorageError, match="there is no such bucket"):
        kept("s3://nobody-made-it/run", "a")
    quick = {"connect_timeout": 1, "read_timeout": 1, "retries": {"total_max_attempts": 1}}
    monkeypatch.setattr("koe.remote._S3_CONFIG", quick)
    monkeypatch.setattr("koe.remote._S3_TRIES", 1)
    s3.fail(share=1)
    try:
        for ask in (lambda: kept(folder, "a"), lambda: keep(folder, "a", b"")):
            with pytest.raises(StorageError, match="refuses requests for now"):
                ask()
    finally:
        s3.fail()
