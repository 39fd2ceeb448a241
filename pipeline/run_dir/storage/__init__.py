"""Reads and writes the files of a run directory, on a local disk, NFS, or any fsspec file system."""

from pipeline.run_dir.storage.store import Output, Storage
from pipeline.run_dir.storage.tables import BATCH_ROWS

__all__ = ["BATCH_ROWS", "Output", "Storage"]
