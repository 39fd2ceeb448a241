"""The rows of a shard made the plain way: one row, one document and one list after another."""

from collections.abc import Mapping

import pyarrow as pa

from koe.schema import ROW


def plain_rows(order_slice: pa.Table, tables: Mapping[str, pa.Table]) -> pa.Table:
    """Make the rows (ROW) of a shard from its slice of the order and all samples, in plan order."""
    names = list(tables)
    samples = [table.to_pylist() for table in tables.values()]
    rows: list[dict[str, list]] = []
    for piece in order_slice.to_pylist():
        if piece["row"] == len(rows):
            rows.append({name: [] for name in ROW.names})
        row, sample = rows[-1], samples[piece["unit"]][piece["sample"]]
        tokens = sample["input_ids"][piece["start"] : piece["stop"]]
        row["input_ids"] += tokens
        row["document_lengths"].append(len(tokens))
        row["document_sources"].append(sample["source"])
        row["document_ids"].append(sample["id"])
        row["document_modalities"].append(sample["modality"])
        row["document_units"].append(names[piece["unit"]])
        row["document_parts"].append(piece["part"])
    return pa.Table.from_pylist(rows, schema=ROW)
