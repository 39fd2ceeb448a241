"""The storage on an S3 server."""

from __future__ import annotations

import pyarrow as pa

from pipeline.run_dir.storage import Storage
from tests.s3_server import S3Server


def test_what_was_written_is_read_back(s3: S3Server) -> None:
    storage = Storage(s3.make_bucket("round-trip") + "/run")
    table = pa.table({"id": ["a", "b"], "n": [1, 2]})
    output = storage.write_table("score/one.arrow", table)
    storage.write_bytes("score/one.json", b"{}")
    assert storage.names("score") == ["one.arrow", "one.json"]
    assert storage.size("score/one.arrow") == output.num_bytes
    assert storage.read_table("score/one.arrow").equals(table)
    storage.remove("score/one.json")
    assert storage.names("score") == ["one.arrow"]
    assert storage.size("score/one.json") is None
