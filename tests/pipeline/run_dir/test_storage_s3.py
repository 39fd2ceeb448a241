"""The storage on an S3 server."""

from __future__ import annotations

import pyarrow as pa

from pipeline.run_dir.storage import Storage
from tests.s3_server import S3Server


def test_what_was_written_is_read_back(s3: S3Server) -> None:
    storage = Storage(s3.make_bucket("round-trip") + "/run")
    table = pa.table({"id": ["a", "b"], "n": [1, 2]})
    output = storage.write_table("made/one.arrow", table)
    storage.write_bytes("made/one.json", b"{}")
    assert storage.names("made") == ["one.arrow", "one.json"]
    assert storage.size("made/one.arrow") == output.num_bytes
    assert storage.read_table("made/one.arrow").equals(table)
    storage.remove("made/one.json")
    assert storage.names("made") == ["one.arrow"]
    assert storage.size("made/one.json") is None
