"""Pieces of cut samples: the documents of the shards that are not a whole sample.

No hash of a sample tells whether a piece of it is right, so the samples that were cut are read again:
each unit that has one once, after all shards, instead of for every shard.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.run_dir.storage import Storage
from pipeline.verify.lists import TokenLists, offsets
from pipeline.verify.order import Pieces, order_error
from pipeline.verify.samples import SampleTable, hash_documents
from pipeline.verify.shards import Document, ShardDocuments, prove_document


class CutDocuments:
    """Collects the documents that are pieces of samples, 56 bytes each, and then proves them."""

    def __init__(self, samples: SampleTable, storage: Storage) -> None:
        self._samples, self._storage = samples, storage
        self._paths: list[str] = []  # of the shards
        self._found: list[np.ndarray] = []  # unit, sample, start, stop, shard, document, hash

    def add(self, pieces: Pieces, sizes: np.ndarray, shard: ShardDocuments) -> None:
        """Take in the documents of a shard; `sizes`: the tokens of each one's sample, int64 [pieces]."""
        cut = np.flatnonzero(pieces.stop - pieces.start != sizes)
        columns = [x[cut] for x in (pieces.unit, pieces.sample, pieces.start, pieces.stop)]
        columns += [np.full(len(cut), len(self._paths)), cut, shard.hashes(cut)]
        self._found.append(np.stack([column.astype(np.int64) for column in columns]))
        self._paths.append(shard.path)

    def prove(self) -> None:
        """Prove that all of them equal their pieces of the samples, unit by unit.

        Raises: ContractError naming the document that differs, and where.
        """
        found = np.concatenate([np.empty((7, 0), np.int64), *self._found], axis=1)
        found = found[:, np.argsort(found[0], kind="stable")]
        cuts = np.flatnonzero(np.diff(found[0])) + 1
        for of_unit in np.split(found, cuts, axis=1) if found.size else []:
            unit, (sample, start, stop) = int(of_unit[0, 0]), of_unit[1:4]
            opened = self._samples.open(unit)
            ids = opened.ids.take(pa.array(sample)).to_pylist()
            tokens = opened.tokens.cut(sample, start, stop)
            differs = np.flatnonzero(hash_documents(ids, tokens) != of_unit[6])
            if len(differs):
                place = int(differs[0])
                shard, document = of_unit[4:6, place].tolist()
                self._explain(shard, document, (ids[place], tokens[place]))

    def _explain(self, shard: int, document: int, wanted: Document) -> None:
        """Read a document again, and say what differs."""
        path = self._paths[shard]
        table = self._storage.read_table(path)
        sizes = [np.array(row) for row in table["document_lengths"].to_pylist()]
        of_row = offsets(np.array([len(row) for row in sizes]))
        row = int(np.searchsorted(of_row, document, side="right")) - 1
        place = document - int(of_row[row])
        begin = int(sizes[row][:place].sum())
        rows, ends = np.array([row]), np.array([begin + int(sizes[row][place])])
        (tokens,) = TokenLists(table["input_ids"]).cut(rows, np.array([begin]), ends)
        id = table["document_ids"][row][place].as_py()
        name = f"document {id} in {path}:{row}"
        prove_document(name, (id, tokens), wanted)
        what = f"{name} differs from its tokenized sample"
        raise order_error(what, "one of them was replaced while they were verified")
