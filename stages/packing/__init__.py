"""Interleave's machinery: order, queue, layout, mix, packing, shards."""
